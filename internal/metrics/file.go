// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const (
	// maxFile bounds what is read of a file.
	maxFile = 4 << 20
	// lockFor is how long another push may take to write the same file.
	lockFor = 5 * time.Second
	// prefix begins the name of each metric of rpush.
	prefix = "rpush_"
)

// Merge adds the metrics of g to the file at path, which node_exporter's textfile
// collector reads: counters are added up, gauges are replaced. So a counter never goes
// back as long as the file is there, and Prometheus can compute rates of it.
//
// The file is replaced whole, with mode 0644. Processes that write the same file wait
// for each other, with a lock in the file PATH.lock. A file that holds anything but
// metrics of rpush is left alone.
func Merge(ctx context.Context, path string, g prometheus.Gatherer) error {
	now, err := g.Gather()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lockFor)
	defer cancel()
	lock := flock.New(path+".lock", flock.SetPermissions(0o644))
	if ok, err := lock.TryLockContext(ctx, 20*time.Millisecond); !ok {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("another process has held %s for %s", lock.Path(), lockFor)
		}
		return err
	}
	defer lock.Close() //nolint:errcheck // the process ends
	families, err := read(path)
	if err != nil {
		return err
	}
	for _, f := range now {
		families[f.GetName()] = added(families[f.GetName()], f)
	}
	var text bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(families)) {
		if _, err := expfmt.MetricFamilyToText(&text, families[name]); err != nil {
			return err
		}
	}
	return replace(path, text.Bytes())
}

// read returns the metrics in a file, none if there is no file.
func read(path string) (map[string]*dto.MetricFamily, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]*dto.MetricFamily{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes, and left alone", path, maxFile)
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("%s has no metrics of rpush, and is left alone: %w", path, err)
	}
	for name := range families {
		if !strings.HasPrefix(name, prefix) {
			return nil, fmt.Errorf("%s has the metric %s, which is not rpush's, and is left alone", path, name)
		}
	}
	return families, nil
}

// added returns the metrics of a family: what was, and what is added.
func added(was, more *dto.MetricFamily) *dto.MetricFamily {
	if was == nil || was.GetType() != more.GetType() {
		return more
	}
	sum := &dto.MetricFamily{Name: more.Name, Help: more.Help, Type: more.Type, Metric: slices.Clone(was.GetMetric())}
	for _, m := range more.GetMetric() {
		i := slices.IndexFunc(sum.Metric, func(o *dto.Metric) bool { return labels(o) == labels(m) })
		switch {
		case i < 0:
			sum.Metric = append(sum.Metric, m)
		case m.Counter != nil && sum.Metric[i].Counter != nil:
			total := m.Counter.GetValue() + sum.Metric[i].Counter.GetValue()
			sum.Metric[i] = &dto.Metric{Label: m.Label, Counter: &dto.Counter{Value: &total}}
		default:
			sum.Metric[i] = m
		}
	}
	slices.SortFunc(sum.Metric, func(a, b *dto.Metric) int { return cmp.Compare(labels(a), labels(b)) })
	return sum
}

// labels tells the metrics of a family apart.
func labels(m *dto.Metric) string {
	var all []string
	for _, l := range m.GetLabel() {
		all = append(all, fmt.Sprintf("%q=%q", l.GetName(), l.GetValue()))
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// replace writes a file whole or not at all. The name of the new one does not end in
// .prom: node_exporter would read it.
func replace(path string, b []byte) (err error) {
	t, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	_, err = t.Write(b)
	err = errors.Join(err, t.Chmod(0o644), t.Close()) //nolint:gosec // node_exporter is another user
	if err == nil {
		err = os.Rename(t.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(t.Name()))
	}
	return nil
}
