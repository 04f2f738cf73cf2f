// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"io"
	"log"
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rpush-go/rpush/internal/metrics"
)

// quietLog takes what net/http says about connections.
var quietLog = log.New(io.Discard, "", 0)

// gatewayMetrics are what a gateway tells Prometheus.
type gatewayMetrics struct {
	handler  http.Handler
	inFlight prometheus.Gauge
	requests *prometheus.CounterVec
	received prometheus.Counter
	uploads  *metrics.Uploads
}

func newGatewayMetrics() *gatewayMetrics {
	m := &gatewayMetrics{
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rpush_gateway_requests_in_flight", Help: "Requests of clients under way.",
		}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rpush_gateway_requests_total", Help: "Requests of clients; the code of those that were cut off before the end of the answer is aborted.",
		}, []string{"method", "code"}),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rpush_gateway_received_bytes_total", Help: "Bytes of bodies that clients sent.",
		}),
	}
	r := prometheus.NewRegistry()
	r.MustRegister(m.inFlight, m.requests, m.received)
	m.uploads = metrics.NewUploads(r)
	m.handler = promhttp.HandlerFor(r, promhttp.HandlerOpts{})
	return m
}

// around serves /healthz, and /metrics to those whom admit lets use the gateway.
func (m *gatewayMetrics) around(h http.Handler, admit func(http.ResponseWriter, *http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/healthz":
			_, _ = io.WriteString(w, "ok\n")
			return
		case "/metrics":
			if admit(w, r) {
				m.handler.ServeHTTP(w, r)
			}
			return
		}
		m.inFlight.Inc()
		defer m.inFlight.Dec()
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &countedBody{r.Body, m.received}
		}
		sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		code := "aborted" // h panics with http.ErrAbortHandler
		defer func() { m.requests.WithLabelValues(knownMethod(r.Method), code).Inc() }()
		h.ServeHTTP(sw, r)
		code = strconv.Itoa(sw.status)
	})
}

// knownMethod bounds the values of the label method.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		return method
	}
	return "other"
}

type countedBody struct {
	io.ReadCloser
	n prometheus.Counter
}

func (c *countedBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n.Add(float64(n))
	return n, err
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
