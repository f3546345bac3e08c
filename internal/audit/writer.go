package audit

import (
	"context"
	"log/slog"
	"sync/atomic"
)

// buffered is how many records wait for the log at most: those of a second of a
// node's busiest pods.
const buffered = 2048

// Writer writes records to a log in the background: a log that takes its time
// holds up no request. What it cannot take in is left out and counted. Use
// [NewWriter], then [Writer.Run].
type Writer struct {
	log     *slog.Logger
	records chan Record
	dropped func()
	missing atomic.Int64 // records left out since the last line
}

// NewWriter returns a writer. dropped is told of each record that is left out.
func NewWriter(log *slog.Logger, dropped func()) *Writer {
	return &Writer{log: log, records: make(chan Record, buffered), dropped: dropped}
}

// Write takes a copy of the record. It never waits.
func (w *Writer) Write(record *Record) {
	select {
	case w.records <- *record:
	default:
		w.missing.Add(1)
		w.dropped()
	}
}

// Run writes until ctx ends, and then what has been taken in.
func (w *Writer) Run(ctx context.Context) {
	for {
		select {
		case record := <-w.records:
			w.line(ctx, &record)
		case <-ctx.Done():
			w.rest(context.WithoutCancel(ctx))
			return
		}
	}
}

func (w *Writer) rest(ctx context.Context) {
	for {
		select {
		case record := <-w.records:
			w.line(ctx, &record)
		default:
			return
		}
	}
}

func (w *Writer) line(ctx context.Context, record *Record) {
	record.Log(ctx, w.log)
	if n := w.missing.Swap(0); n > 0 {
		w.log.WarnContext(ctx, "decisions are missing here: the log was too slow", "dropped", n)
	}
}
