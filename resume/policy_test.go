package resume_test

import (
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// A registry that keeps whole parts only loses much of a body that is all that
// is left: chunks cost less. One that keeps every byte gets no chunks.
func TestCostOfABreak(t *testing.T) {
	ds := resume.MemoryDialects()
	o := scripted.Options{PartSize: 20 * mib}
	const size = 100 * mib
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		l.dying(32 * mib)
		res := l.delivers(content(size))
		if most := int64(size) * 120 / 100; res.Sent > most || res.Restarts != 0 {
			t.Errorf("%.2f x the blob was sent, want at most 1.20: %+v", float64(res.Sent)/size, res)
		}
		if d := learns(t, ds, resume.Exact); d.Chunk < 5*mib || d.Chunk > 12*mib {
			t.Errorf("learnt %+v, want chunks", d)
		}
	})
	// A line that has become good needs no chunks.
	ds.Save(host, resume.Dialect{Class: resume.Exact, Chunk: 20 * mib})
	inLab(t, o, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		l.delivers(content(size))
		if d := learns(t, ds, resume.Exact); d.Chunk != 0 {
			t.Errorf("after 100 MiB without a break: %+v", d)
		}
	})
	// Nor does a registry that keeps every byte.
	ds.Save(host, resume.Dialect{Class: resume.Exact, Chunk: 20 * mib})
	inLab(t, scripted.Options{}, resume.Options{Dialects: ds}, func(l *lab) {
		l.net.Latency = latency
		l.dying(16 * mib)
		res := l.delivers(content(40 * mib))
		if d := learns(t, ds, resume.Exact); d.Chunk != 0 || res.Sent > 41*mib {
			t.Errorf("learnt %+v, and sent %d bytes", d, res.Sent)
		}
	})
}
