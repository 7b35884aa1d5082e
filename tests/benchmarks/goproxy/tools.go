package main

import (
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"
)

// catalogue is the list of tools as it is offered to models.
type catalogue struct {
	keep        time.Duration
	lock        sync.Mutex
	listed      time.Time
	definitions json.RawMessage
}

type definition struct {
	Type     string `json:"type"`
	Function struct {
		Name        string          `json:"name"`
		Description string          `json:"description"`
		Parameters  json.RawMessage `json:"parameters"`
	} `json:"function"`
}

// offered returns the definitions, and lists the tools anew if they are older than they may be.
func (c *catalogue) offered(p *proxy, r *http.Request) (json.RawMessage, error) {
	c.lock.Lock()
	definitions, listed := c.definitions, c.listed
	c.lock.Unlock()
	if definitions != nil && time.Since(listed) < c.keep {
		return definitions, nil
	}
	definitions, err := list(p, r)
	if err == nil && c.keep > 0 {
		c.lock.Lock()
		c.definitions, c.listed = definitions, time.Now()
		c.lock.Unlock()
	}
	return definitions, err
}

func list(p *proxy, r *http.Request) (json.RawMessage, error) {
	asked, err := http.NewRequestWithContext(r.Context(), "GET", p.upstream+"/v1/tools", nil)
	if err != nil {
		return nil, err
	}
	asked.Header["Authorization"] = r.Header["Authorization"]
	answer, err := p.transport.RoundTrip(asked)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, err
	}
	var tools struct {
		Data []struct {
			Name        string          `json:"name"`
			Description string          `json:"description"`
			InputSchema json.RawMessage `json:"input_schema"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &tools); err != nil {
		return nil, err
	}
	definitions := make([]definition, len(tools.Data))
	for i, tool := range tools.Data {
		definitions[i].Type = "function"
		definitions[i].Function.Name = tool.Name
		definitions[i].Function.Description = tool.Description
		definitions[i].Function.Parameters = tool.InputSchema
	}
	return json.Marshal(definitions)
}
