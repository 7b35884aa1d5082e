"""HTTP towards Llama Stack."""
