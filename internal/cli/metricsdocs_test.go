// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v3"

	"github.com/rpush-go/rpush/internal/metrics"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/resume"
)

// written are the names of all metrics that rpush writes, read from their text.
func written(t *testing.T) map[string]bool {
	t.Helper()
	event := resume.Event{Kind: resume.Broken, Repository: "reg.example/app", Digest: digestA}
	r := prometheus.NewRegistry()
	metrics.NewUploads(r).Event(event)
	metrics.NewPushes(r).Ended(metrics.Push{Registry: "reg.example", Status: "pushed"})
	file := filepath.Join(t.TempDir(), "rpush.prom")
	if err := metrics.Merge(t.Context(), file, r); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	gw := newGatewayMetrics()
	gw.uploads.Event(event)
	h := gw.around(http.NotFoundHandler(), func(http.ResponseWriter, *http.Request) bool { return true })
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/v2/", nil))
	page := httptest.NewRecorder()
	h.ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))

	names := map[string]bool{}
	for what, text := range map[string]string{"the file": string(b), "/metrics": page.Body.String()} {
		p := expfmt.NewTextParser(model.LegacyValidation)
		families, err := p.TextToMetricFamilies(strings.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v\n%s", what, err, text)
		}
		for name := range families {
			names[name] = true
		}
	}
	return names
}

var metricName = regexp.MustCompile(`\brpush_[a-z_]+`)

// The dashboard and the rules use no metric that does not exist, and docs/metrics.md
// explains each that does.
func TestMetricsAreDocumented(t *testing.T) {
	names := written(t)
	if len(names) < 15 {
		t.Errorf("only %d metrics: %v", len(names), names)
	}
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if !strings.Contains(string(doc), "| `"+name+"` |") {
			t.Errorf("docs/metrics.md does not explain %s", name)
		}
	}
	for _, name := range metricName.FindAllString(string(doc), -1) {
		if !names[name] {
			t.Errorf("docs/metrics.md speaks of %s, which does not exist", name)
		}
	}
	dashboard, rules := dashboardExpressions(t), ruleExpressions(t)
	if len(dashboard) < 10 || len(rules) < 5 {
		t.Errorf("%d expressions in the dashboard, %d in the rules", len(dashboard), len(rules))
	}
	for _, expr := range append(dashboard, rules...) {
		used := metricName.FindAllString(expr, -1)
		if len(used) == 0 {
			t.Errorf("no metric of rpush in %s", expr)
		}
		for _, name := range used {
			if !names[name] {
				t.Errorf("%s does not exist, in %s", name, expr)
			}
		}
	}
}

// dashboardExpressions are those of the dashboard, with values for its variables.
func dashboardExpressions(t *testing.T) (all []string) {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Targets []struct{ Expr string }
		}
	}
	b, err := os.ReadFile("../../docs/grafana/rpush.json")
	if err == nil {
		err = json.Unmarshal(b, &dashboard)
	}
	if err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$__rate_interval", "5m", "$__range", "1d", "$registry", "reg.example")
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			all = append(all, variables.Replace(target.Expr))
		}
	}
	return all
}

const rulesFile = "../../docs/prometheus/alerts.yml"

func ruleExpressions(t *testing.T) (all []string) {
	t.Helper()
	var rules struct {
		Groups []struct {
			Rules []struct{ Expr string }
		}
	}
	b, err := os.ReadFile(rulesFile)
	if err == nil {
		err = yaml.Unmarshal(b, &rules)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			all = append(all, r.Expr)
		}
	}
	return all
}

// Prometheus itself parses the rules and the expressions of the dashboard, and each
// alert fires when it should: see testdata/alerts_test.yml.
func TestRulesByPromtool(t *testing.T) {
	promtool := realreg.Tool(t, "promtool")
	var recording strings.Builder
	recording.WriteString("groups:\n- name: dashboard\n  rules:\n")
	for i, expr := range dashboardExpressions(t) {
		fmt.Fprintf(&recording, "  - record: panel:%d\n    expr: %q\n", i, expr)
	}
	panels := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(panels, []byte(recording.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"check", "rules", rulesFile},
		{"check", "rules", panels},
		{"test", "rules", "testdata/alerts_test.yml"},
	} {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
