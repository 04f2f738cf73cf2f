// SPDX-License-Identifier: Apache-2.0

package pusher

import (
	"context"
	"time"

	"github.com/rpush-go/rpush/resume"
)

// event passes on an event of the delivery.
func (d *Delivery) event(e resume.Event) {
	d.events.Lock()
	defer d.events.Unlock()
	e.Total = d.total
	d.p.o.OnEvent(e)
}

// emit tells of something that is about no blob.
func (d *Delivery) emit(ctx context.Context, e resume.Event) {
	if d.p.o.OnEvent == nil {
		return
	}
	e.Time, e.Context, e.Reference, e.Repository = time.Now(), ctx, d.ref.Name(), d.ref.Context().Name()
	d.event(e)
}

// plan makes t the total of all events from now on.
func (d *Delivery) plan(ctx context.Context, t resume.Total) {
	d.events.Lock()
	same := d.total == t
	d.total = t
	d.events.Unlock()
	if !same {
		d.emit(ctx, resume.Event{Kind: resume.EventPlanned})
	}
}

// published tells that the registry has m under id, a tag or a digest.
func (d *Delivery) published(ctx context.Context, id string, m *node) {
	e := resume.Event{Kind: resume.EventPublished, Digest: m.digest, MediaType: m.report.MediaType, Size: m.report.Size}
	if id != m.digest.String() {
		e.Tag = id
	}
	d.emit(ctx, e)
}
