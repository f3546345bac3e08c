// Package load asks HTTP servers as fast as they answer, or at a fixed rate, and
// costs the machine as little as it can: what is measured is the server.
//
// It must not know what is asked or which figure is good.
package load

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

// Peer is a server under load and how to reach it.
type Peer struct {
	Name string
	// Dial opens a connection from a pod's address.
	Dial func(ctx context.Context, from netip.Addr) (net.Conn, error)
	// From lists the pods that ask, and Target what each asks for.
	From   []netip.Addr
	Target func(i int) string
	// Another, if set, says what each single request asks for.
	Another func() string
	// Process is the server's.
	Process Process
}

// Line is one connection that asks one thing over and over. It costs the machine
// as little as it can: what is measured is the server.
type Line struct {
	conn    net.Conn
	reader  *bufio.Reader
	request []byte
	another func() string
}

// Open connects as the i-th of the pods.
func (p *Peer) Open(ctx context.Context, i int) (*Line, error) {
	from := p.From[i%len(p.From)]
	conn, err := p.Dial(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s from %s: %w", p.Name, from, err)
	}
	return &Line{conn: conn, reader: bufio.NewReaderSize(conn, 8<<10), request: request(p.Target(i % len(p.From))), another: p.Another}, nil
}

func request(target string) []byte {
	return []byte("GET " + target + " HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nUser-Agent: bench\r\n\r\n")
}

// Answer is what came back: the status, the length and Retry-After.
type Answer struct {
	Status, Length int
	After          time.Duration
}

// Ask sends the request and reads all of its answer.
func (l *Line) Ask() (Answer, error) {
	if err := l.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return Answer{}, err
	}
	if l.another != nil {
		l.request = request(l.another())
	}
	if _, err := l.conn.Write(l.request); err != nil {
		return Answer{}, err
	}
	out, err := l.head()
	if err != nil {
		return Answer{}, err
	}
	_, err = l.reader.Discard(out.Length)
	return out, err
}

func (l *Line) head() (Answer, error) {
	out := Answer{Length: -1}
	for first := true; ; first = false {
		text, err := l.reader.ReadSlice('\n')
		if err != nil {
			return out, err
		}
		text = bytes.TrimRight(text, "\r\n")
		switch name, value, _ := bytes.Cut(text, []byte(": ")); {
		case first && len(text) >= 12:
			out.Status, err = strconv.Atoi(string(text[9:12]))
		case len(text) == 0 && out.Length < 0:
			return out, fmt.Errorf("the answer %d does not say how long it is", out.Status)
		case len(text) == 0:
			return out, nil
		case string(name) == "Content-Length":
			out.Length, err = strconv.Atoi(string(value))
		case string(name) == "Retry-After":
			out.After, err = time.ParseDuration(string(value) + "s")
		}
		if err != nil {
			return out, fmt.Errorf("reading %q: %w", text, err)
		}
	}
}

// Close ends the connection.
func (l *Line) Close() { _ = l.conn.Close() } // nothing is under way

// lines opens n connections, and returns how to close them.
func (p *Peer) lines(ctx context.Context, n int) ([]*Line, func(), error) {
	var out []*Line
	closeAll := func() {
		for _, l := range out {
			l.Close()
		}
	}
	for i := range n {
		l, err := p.Open(ctx, i)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		out = append(out, l)
	}
	return out, closeAll, nil
}

// Round is what one measurement found.
type Round struct {
	// PerSecond counts answers, CPU is the server's time for one of them, in
	// seconds as Latencies are.
	PerSecond, CPU float64
	Latencies      Series
	Failures       int
}

// Closed keeps n connections busy for a while.
func (p *Peer) Closed(ctx context.Context, n int, length time.Duration) (Round, error) {
	lines, closeAll, err := p.lines(ctx, n)
	if err != nil {
		return Round{}, err
	}
	defer closeAll()
	before, err := p.Process.CPU()
	if err != nil {
		return Round{}, err
	}
	var answered, failed atomic.Int64
	var group sync.WaitGroup
	start := time.Now()
	for _, l := range lines {
		group.Go(func() {
			for time.Since(start) < length && ctx.Err() == nil {
				if got, err := l.Ask(); err != nil || got.Status != 200 {
					failed.Add(1)
					return
				}
				answered.Add(1)
			}
		})
	}
	group.Wait()
	took := time.Since(start)
	after, err := p.Process.CPU()
	count := float64(answered.Load())
	return Round{PerSecond: count / took.Seconds(), CPU: (after - before).Seconds() / max(1, count), Failures: int(failed.Load())}, err
}

// Flow is requests at a fixed rate, whatever the answers do.
type Flow struct {
	PerSecond   float64
	Connections int
	Length      time.Duration
	// Refusals says that answers other than 200 are expected.
	Refusals bool
}

// OpenLoop asks at a fixed rate. A request that had to wait for a connection has
// waited: latencies count from when it was due.
func (p *Peer) OpenLoop(ctx context.Context, f Flow) (Round, error) {
	lines, closeAll, err := p.lines(ctx, f.Connections)
	if err != nil {
		return Round{}, err
	}
	defer closeAll()
	total := int(f.PerSecond * f.Length.Seconds())
	due := make(chan time.Time, total)
	found := make([]Round, len(lines))
	var group sync.WaitGroup
	for i, l := range lines {
		group.Go(func() { found[i] = l.serve(due, f.Refusals, time.Now().Add(f.Length)) })
	}
	pace(ctx, due, total, f.PerSecond)
	group.Wait()
	out := Round{PerSecond: f.PerSecond}
	for _, r := range found {
		out.Latencies, out.Failures = append(out.Latencies, r.Latencies...), out.Failures+r.Failures
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
func (l *Line) serve(due <-chan time.Time, refusals bool, end time.Time) Round {
	var out Round
	for at := range due {
		if refusals && time.Now().After(end) {
			continue
		}
		got, err := l.Ask()
		switch {
		case err != nil:
			out.Failures++
			return out
		case got.Status != 200 && !refusals:
			out.Failures++
		}
		out.Latencies = append(out.Latencies, time.Since(at).Seconds())
	}
	return out
}

// Fetch returns the body of one answer.
func (p *Peer) Fetch(ctx context.Context, i int) ([]byte, error) {
	l, err := p.Open(ctx, i)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	if _, err := l.conn.Write(l.request); err != nil {
		return nil, err
	}
	got, err := l.head()
	if err != nil {
		return nil, err
	}
	body := make([]byte, got.Length)
	if _, err := io.ReadFull(l.reader, body); err != nil {
		return nil, err
	}
	if got.Status != 200 {
		return nil, fmt.Errorf("%s answered %d: %s", p.Name, got.Status, body)
	}
	return body, nil
}
