package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// peer is a server under load and how to reach it.
type peer struct {
	name string
	// dial opens a connection from a pod's address.
	dial func(ctx context.Context, from netip.Addr) (net.Conn, error)
	// from lists the pods that ask, and target what each asks for.
	from   []netip.Addr
	target func(i int) string
	// another, if set, says what each single request asks for.
	another func() string
	// process is the server's.
	process process
}

// line is one connection that asks one thing over and over. It costs the machine
// as little as it can: what is measured is the server.
type line struct {
	conn    net.Conn
	reader  *bufio.Reader
	request []byte
	another func() string
}

func (p *peer) open(ctx context.Context, i int) (*line, error) {
	from := p.from[i%len(p.from)]
	conn, err := p.dial(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s from %s: %w", p.name, from, err)
	}
	return &line{conn: conn, reader: bufio.NewReaderSize(conn, 8<<10), request: request(p.target(i % len(p.from))), another: p.another}, nil
}

func request(target string) []byte {
	return []byte("GET " + target + " HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nUser-Agent: bench\r\n\r\n")
}

// answer is what came back: the status, the length and Retry-After.
type answer struct {
	status, length int
	after          time.Duration
}

// ask sends the request and reads all of its answer.
func (l *line) ask() (answer, error) {
	if err := l.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return answer{}, err
	}
	if l.another != nil {
		l.request = request(l.another())
	}
	if _, err := l.conn.Write(l.request); err != nil {
		return answer{}, err
	}
	out, err := l.head()
	if err != nil {
		return answer{}, err
	}
	_, err = l.reader.Discard(out.length)
	return out, err
}

func (l *line) head() (answer, error) {
	out := answer{length: -1}
	for first := true; ; first = false {
		text, err := l.reader.ReadSlice('\n')
		if err != nil {
			return out, err
		}
		text = bytes.TrimRight(text, "\r\n")
		switch name, value, _ := bytes.Cut(text, []byte(": ")); {
		case first && len(text) >= 12:
			out.status, err = strconv.Atoi(string(text[9:12]))
		case len(text) == 0 && out.length < 0:
			return out, fmt.Errorf("the answer %d does not say how long it is", out.status)
		case len(text) == 0:
			return out, nil
		case string(name) == "Content-Length":
			out.length, err = strconv.Atoi(string(value))
		case string(name) == "Retry-After":
			out.after, err = time.ParseDuration(string(value) + "s")
		}
		if err != nil {
			return out, fmt.Errorf("reading %q: %w", text, err)
		}
	}
}

// lines opens n connections, and returns how to close them.
func (p *peer) lines(ctx context.Context, n int) ([]*line, func(), error) {
	var out []*line
	closeAll := func() {
		for _, l := range out {
			_ = l.conn.Close() // nothing is under way
		}
	}
	for i := range n {
		l, err := p.open(ctx, i)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		out = append(out, l)
	}
	return out, closeAll, nil
}

// round is what one measurement found.
type round struct {
	// perSecond counts answers, cpu is the server's time for one of them.
	perSecond, cpu float64
	latencies      series
	failures       int
}

// closed keeps n connections busy for a while.
func (p *peer) closed(ctx context.Context, n int, length time.Duration) (round, error) {
	lines, closeAll, err := p.lines(ctx, n)
	if err != nil {
		return round{}, err
	}
	defer closeAll()
	before, err := p.process.cpu()
	if err != nil {
		return round{}, err
	}
	var answered, failed atomic.Int64
	var group sync.WaitGroup
	start := time.Now()
	for _, l := range lines {
		group.Go(func() {
			for time.Since(start) < length && ctx.Err() == nil {
				if got, err := l.ask(); err != nil || got.status != 200 {
					failed.Add(1)
					return
				}
				answered.Add(1)
			}
		})
	}
	group.Wait()
	took := time.Since(start)
	after, err := p.process.cpu()
	count := float64(answered.Load())
	return round{perSecond: count / took.Seconds(), cpu: (after - before).Seconds() / max(1, count), failures: int(failed.Load())}, err
}

// flow is requests at a fixed rate, whatever the answers do.
type flow struct {
	perSecond   float64
	connections int
	length      time.Duration
	// refusals says that answers other than 200 are expected.
	refusals bool
}

// open asks at a fixed rate. A request that had to wait for a connection has
// waited: latencies count from when it was due.
func (p *peer) openLoop(ctx context.Context, f flow) (round, error) {
	lines, closeAll, err := p.lines(ctx, f.connections)
	if err != nil {
		return round{}, err
	}
	defer closeAll()
	total := int(f.perSecond * f.length.Seconds())
	due := make(chan time.Time, total)
	found := make([]round, len(lines))
	var group sync.WaitGroup
	for i, l := range lines {
		group.Go(func() { found[i] = l.serve(due, f.refusals, time.Now().Add(f.length)) })
	}
	pace(ctx, due, total, f.perSecond)
	group.Wait()
	out := round{perSecond: f.perSecond}
	for _, r := range found {
		out.latencies, out.failures = append(out.latencies, r.latencies...), out.failures+r.failures
	}
	return out, ctx.Err()
}

// pace hands out when requests are due, evenly, and closes the channel.
func pace(ctx context.Context, due chan<- time.Time, total int, perSecond float64) {
	defer close(due)
	start := time.Now()
	ticker := time.NewTicker(500 * time.Microsecond)
	defer ticker.Stop()
	for sent := 0; sent < total && ctx.Err() == nil; <-ticker.C {
		for until := int(time.Since(start).Seconds() * perSecond); sent < min(until, total); sent++ {
			due <- start.Add(time.Duration(float64(sent) / perSecond * float64(time.Second)))
		}
	}
}

// serve asks whenever a request is due. Where refusals are expected, what is still
// due at the end is let go: it waits for an agent that holds it back on purpose.
func (l *line) serve(due <-chan time.Time, refusals bool, end time.Time) round {
	var out round
	for at := range due {
		if refusals && time.Now().After(end) {
			continue
		}
		got, err := l.ask()
		switch {
		case err != nil:
			out.failures++
			return out
		case got.status != 200 && !refusals:
			out.failures++
		}
		out.latencies = append(out.latencies, time.Since(at).Seconds())
	}
	return out
}

// fetch returns the body of one answer.
func (p *peer) fetch(ctx context.Context, i int) ([]byte, error) {
	l, err := p.open(ctx, i)
	if err != nil {
		return nil, err
	}
	defer func() { _ = l.conn.Close() }() // all was read
	if _, err := l.conn.Write(l.request); err != nil {
		return nil, err
	}
	got, err := l.head()
	if err != nil {
		return nil, err
	}
	body := make([]byte, got.length)
	if _, err := io.ReadFull(l.reader, body); err != nil {
		return nil, err
	}
	if got.status != 200 {
		return nil, fmt.Errorf("%s answered %d: %s", p.name, got.status, body)
	}
	return body, nil
}
