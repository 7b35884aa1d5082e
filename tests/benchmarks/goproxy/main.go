// A proxy for Llama Stack of about 200 lines, to compare llamaproxy with: what it does is the least
// that a tool-calling proxy can do, written as Go programs are, with the standard library only.
//
//	goproxy LISTEN UPSTREAM KEEP
//
// KEEP is how long the list of tools is kept, as "0s" (it is asked for by every chat) or "1m".
package main

import (
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

// Fields that are between two neighbours and no further (RFC 9110, section 7.6.1).
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade",
}

type proxy struct {
	upstream  string
	transport *http.Transport
	tools     catalogue
}

func main() {
	keep, err := time.ParseDuration(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	p := &proxy{
		upstream: os.Args[2],
		transport: &http.Transport{
			MaxIdleConnsPerHost: 4096,
			DisableCompression:  true,
		},
	}
	p.tools.keep = keep
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/chat/completions", p.chat)
	mux.HandleFunc("/", p.pass)
	log.Fatal(http.ListenAndServe(os.Args[1], mux))
}

// pass forwards a request as it is and relays the answer.
func (p *proxy) pass(w http.ResponseWriter, r *http.Request) {
	asked, err := http.NewRequestWithContext(
		r.Context(), r.Method, p.upstream+r.URL.RequestURI(), r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	asked.ContentLength = r.ContentLength
	if r.ContentLength == 0 {
		asked.Body = http.NoBody
	}
	endToEnd(asked.Header, r.Header)
	answer, err := p.transport.RoundTrip(asked)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	endToEnd(w.Header(), answer.Header)
	w.WriteHeader(answer.StatusCode)
	if strings.HasPrefix(answer.Header.Get("Content-Type"), "text/event-stream") {
		relay(w, answer.Body)
		return
	}
	io.Copy(w, answer.Body)
}

// endToEnd copies the fields that go further than the next neighbour.
func endToEnd(to, from http.Header) {
	for name, values := range from {
		to[name] = values
	}
	for _, nominated := range from["Connection"] {
		for _, name := range strings.Split(nominated, ",") {
			delete(to, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	for _, name := range hopByHop {
		delete(to, name)
	}
}

// relay hands events on as they come.
func relay(w http.ResponseWriter, body io.Reader) {
	buffer := make([]byte, 32*1024)
	for {
		n, err := body.Read(buffer)
		if n > 0 {
			if _, failed := w.Write(buffer[:n]); failed != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
		if err != nil {
			return
		}
	}
}
