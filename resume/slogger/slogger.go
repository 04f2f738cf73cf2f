// SPDX-License-Identifier: Apache-2.0

// Package slogger lets packages resume and pusher log to a log/slog Handler.
//
//	pusher.New(pusher.Options{Logger: slogger.New(slog.Default().Handler())})
package slogger

import (
	"context"
	"io"
	"log/slog"

	"github.com/sirupsen/logrus"
)

// New returns a logger that passes everything on to h: the level, the message, the
// fields as attributes, and the context of the call that a line is about, from which
// handlers take the span of a trace, for one. h decides which levels it wants. The
// result is safe for concurrent use, as h has to be.
func New(h slog.Handler) logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetFormatter(nothing{})
	l.SetLevel(logrus.TraceLevel)
	l.AddHook(hook{h})
	return l
}

// nothing formats nothing: hooks do the work.
type nothing struct{}

func (nothing) Format(*logrus.Entry) ([]byte, error) { return nil, nil }

type hook struct{ h slog.Handler }

// Levels implements logrus.Hook.
func (hook) Levels() []logrus.Level { return logrus.AllLevels }

// levels has those of logrus that slog names, too. What ends the program in logrus is
// more than an error.
var levels = map[logrus.Level]slog.Level{
	logrus.TraceLevel: slog.LevelDebug - 4,
	logrus.DebugLevel: slog.LevelDebug,
	logrus.InfoLevel:  slog.LevelInfo,
	logrus.WarnLevel:  slog.LevelWarn,
	logrus.ErrorLevel: slog.LevelError,
	logrus.FatalLevel: slog.LevelError + 4,
	logrus.PanicLevel: slog.LevelError + 4,
}

// Fire implements logrus.Hook.
func (k hook) Fire(e *logrus.Entry) error {
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	level := levels[e.Level]
	if !k.h.Enabled(ctx, level) {
		return nil
	}
	r := slog.NewRecord(e.Time, level, e.Message, 0)
	for name, value := range e.Data {
		r.AddAttrs(slog.Any(name, value))
	}
	return k.h.Handle(ctx, r)
}
