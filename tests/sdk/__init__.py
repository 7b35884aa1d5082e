"""Programs that speak to llamaproxy through OpenAI's own clients, and an upstream for them."""
