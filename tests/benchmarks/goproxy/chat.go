package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
)

const rounds = 10

type object = map[string]json.RawMessage

type function struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

type call struct {
	Index    int      `json:"index"`
	ID       string   `json:"id"`
	Type     string   `json:"type"`
	Function function `json:"function"`
}

// chat adds the tools to a chat, makes the calls and goes round until there is an answer.
func (p *proxy) chat(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var asked object
	if err == nil {
		err = json.Unmarshal(body, &asked)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var messages []json.RawMessage
	json.Unmarshal(asked["messages"], &messages)
	stream := string(bytes.TrimSpace(asked["stream"])) == "true"
	if asked["tools"], err = p.tools.offered(p, r); err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	for round := 0; round < rounds; round++ {
		answer, err := p.post(r, "/v1/chat/completions", asked)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		var calls []call
		if stream && answer.StatusCode == http.StatusOK {
			calls, err = events(w, answer, round == 0)
		} else {
			calls, err = whole(w, answer)
		}
		answer.Body.Close()
		if err != nil || len(calls) == 0 {
			return
		}
		told, _ := json.Marshal(map[string]any{"role": "assistant", "tool_calls": calls})
		messages = append(messages, told)
		messages = append(messages, p.invoke(r, calls)...)
		asked["messages"], _ = json.Marshal(messages)
	}
}

// post sends JSON to the upstream with the client's key.
func (p *proxy) post(r *http.Request, path string, value any) (*http.Response, error) {
	body, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	asked, err := http.NewRequestWithContext(
		r.Context(), "POST", p.upstream+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	asked.Header["Content-Type"] = []string{"application/json"}
	asked.Header["Authorization"] = r.Header["Authorization"]
	return p.transport.RoundTrip(asked)
}

// whole returns the calls of an answer, or sends it to the client if there are none.
func whole(w http.ResponseWriter, answer *http.Response) ([]call, error) {
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return nil, err
	}
	var completion struct {
		Choices []struct {
			Message struct {
				ToolCalls []call `json:"tool_calls"`
			} `json:"message"`
		} `json:"choices"`
	}
	if json.Unmarshal(body, &completion) == nil && len(completion.Choices) > 0 {
		if calls := completion.Choices[0].Message.ToolCalls; len(calls) > 0 {
			return calls, nil
		}
	}
	endToEnd(w.Header(), answer.Header)
	w.WriteHeader(answer.StatusCode)
	_, err = w.Write(body)
	return nil, err
}

// events relays a stream as it comes, but for its calls, which it returns.
func events(w http.ResponseWriter, answer *http.Response, first bool) ([]call, error) {
	if first {
		endToEnd(w.Header(), answer.Header)
		w.WriteHeader(answer.StatusCode)
	}
	var calls []call
	lines := bufio.NewReader(answer.Body)
	for {
		line, err := lines.ReadSlice('\n')
		if bytes.Contains(line, []byte(`"tool_calls":[`)) {
			var chunk struct {
				Choices []struct {
					Delta struct {
						ToolCalls []call `json:"tool_calls"`
					} `json:"delta"`
				} `json:"choices"`
			}
			json.Unmarshal(bytes.TrimPrefix(line, []byte("data: ")), &chunk)
			for _, choice := range chunk.Choices {
				for _, piece := range choice.Delta.ToolCalls {
					for len(calls) <= piece.Index {
						calls = append(calls, call{Index: len(calls), Type: "function"})
					}
					grown := &calls[piece.Index]
					grown.ID += piece.ID
					grown.Function.Name += piece.Function.Name
					grown.Function.Arguments += piece.Function.Arguments
				}
			}
		} else if len(calls) == 0 {
			if _, failed := w.Write(line); failed != nil {
				return nil, failed
			}
		}
		if lines.Buffered() == 0 || err == io.EOF {
			w.(http.Flusher).Flush()
		}
		if err == io.EOF {
			return calls, nil
		}
		if err != nil && err != bufio.ErrBufferFull {
			return nil, err
		}
	}
}

// invoke makes the calls at once; the messages with their results, in order.
func (p *proxy) invoke(r *http.Request, calls []call) []json.RawMessage {
	messages := make([]json.RawMessage, len(calls))
	var all sync.WaitGroup
	for i := range calls {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			text := p.result(r, calls[i].Function)
			messages[i], _ = json.Marshal(map[string]string{
				"role": "tool", "tool_call_id": calls[i].ID, "content": text,
			})
		}(i)
	}
	all.Wait()
	return messages
}

// result is what the model is told of a call.
func (p *proxy) result(r *http.Request, called function) string {
	answer, err := p.post(r, "/v1/tool-runtime/invoke", map[string]any{
		"tool_name": called.Name, "kwargs": json.RawMessage(called.Arguments),
	})
	if err != nil {
		return fmt.Sprintf("Error: %v", err)
	}
	defer answer.Body.Close()
	var result struct {
		Content []struct {
			Text string `json:"text"`
		} `json:"content"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&result); err != nil {
		return fmt.Sprintf("Error: %v", err)
	}
	io.Copy(io.Discard, answer.Body)
	text := ""
	for _, part := range result.Content {
		text += part.Text
	}
	return text
}
