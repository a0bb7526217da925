package harness

import (
	"net/http"
	"time"
)

// shortClient gives up soon: a frozen server accepts and never answers.
func shortClient() *http.Client {
	return &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
}
