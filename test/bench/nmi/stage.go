package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/test/env"
	"github.com/aad-pod-identity/aad-pod-identity/test/world"

	"github.com/aad-pod-identity/aad-pod-identity/test/bench/nmi/load"
)

const (
	nmiAddress  = "127.0.0.1:2579"
	bareAddress = "127.0.0.1:2580"
	vault       = "https://vault.azure.net"
)

// stage is what the scenarios play on: one node of a world, on which NMI runs and
// whose pods are addresses of its loopback.
type stage struct {
	options options
	dir     string
	world   *world.World
	node    *world.Node
	cluster cluster
	begun   time.Time
	starts  int
	// stopIMDS ends the metadata service; nil if it does not run.
	stopIMDS func() error
}

func newStage(ctx context.Context, o options) (*stage, error) {
	dir, err := os.MkdirTemp("", "bench-nmi")
	if err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	s := &stage{options: o, dir: dir, begun: time.Now()}
	s.world, err = world.New(ctx, world.Options{Programs: o.programs, Kubernetes: env.Assets(), Dir: dir, Progress: s.progress})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s.node = s.world.Nodes[0]
	s.cluster = newCluster(o)
	s.progress(fmt.Sprintf("%d pods, %d identities, %d ServiceAccounts", o.pods, o.identities, o.accounts))
	if err := s.cluster.create(ctx, s.world.Kube, s.node.Name); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if err := s.startIMDS(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *stage) close() error {
	var errs []error
	if s.stopIMDS != nil {
		errs = append(errs, s.stopIMDS())
	}
	return errors.Join(append(errs, s.world.Close(), os.RemoveAll(s.dir))...) //nolint:gosec // a folder of its own
}

func (s *stage) progress(step string) {
	fmt.Fprintf(os.Stderr, "%5.0fs  %s\n", time.Since(s.begun).Seconds(), step)
}

// agent starts NMI anew, with nothing in its cache.
func (s *stage) agent(ctx context.Context, flags ...string) (*load.Peer, func() error, error) {
	if s.starts++; s.starts > 1 {
		// The log of each line of warm requests is long, and nobody reads it.
		if err := os.RemoveAll(s.world.Logs()); err != nil {
			return nil, nil, fmt.Errorf("removing old logs: %w", err)
		}
	}
	running, err := s.node.StartNMI(ctx, "managed", append([]string{"--metadata-upstream=" + imdsAddress, "-v=0"}, flags...)...)
	if err != nil {
		return nil, nil, err
	}
	p := &load.Peer{Name: "NMI", Dial: s.dial(nmiAddress), From: s.cluster.addresses(), Target: s.cluster.warmTarget, Process: load.Process(running.PID())}
	return p, running.Close, nil
}

// bare starts the bare handler, which answers with the bytes of an answer.
func (s *stage) bare(ctx context.Context, answer []byte) (*load.Peer, func() error, error) {
	file := filepath.Join(s.dir, "answer")
	if err := os.WriteFile(file, answer, 0o600); err != nil {
		return nil, nil, fmt.Errorf("writing the answer: %w", err)
	}
	process, stop, err := s.start(ctx, bareAddress, bareCommand, bareAddress, file)
	if err != nil {
		return nil, nil, err
	}
	return &load.Peer{Name: "bare", Dial: s.dial(bareAddress), From: s.cluster.addresses(), Target: s.cluster.warmTarget, Process: process}, stop, nil
}

// start runs this program with a command of its own on the node, and waits until
// it accepts connections.
func (s *stage) start(ctx context.Context, address string, args ...string) (load.Process, func() error, error) {
	program, err := os.Executable()
	if err != nil {
		return 0, nil, fmt.Errorf("finding this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, program, args...) //nolint:gosec // this program itself
	cmd.Stderr = os.Stderr
	if err := s.node.NS.Start(cmd); err != nil {
		return 0, nil, fmt.Errorf("starting %s: %w", args[0], err)
	}
	stop := func() error {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		return nil
	}
	if err := s.await(ctx, args[0], address); err != nil {
		return 0, nil, errors.Join(err, stop())
	}
	return load.Process(cmd.Process.Pid), stop, nil
}

// await waits until a program accepts connections.
func (s *stage) await(ctx context.Context, name, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		conn, err := s.dial(address)(ctx, s.cluster.address(0))
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", name, err)
		}
	}
}

// dial connects within the node, from an address of its loopback.
func (s *stage) dial(to string) func(context.Context, netip.Addr) (net.Conn, error) {
	return func(ctx context.Context, from netip.Addr) (conn net.Conn, err error) {
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: 30 * time.Second}
		err = s.node.NS.Do(func() error {
			conn, err = dialer.DialContext(ctx, "tcp4", to)
			return err
		})
		return conn, err
	}
}

// tokenTarget is the path and query of a token request.
func tokenTarget(clientID, resource string) string {
	query := url.Values{"api-version": {"2018-02-01"}, "client_id": {clientID}, "resource": {resource}}
	return (&url.URL{Path: "/metadata/identity/oauth2/token", RawQuery: query.Encode()}).String()
}

// isRetry reports whether an answer tells a client to come back, and when.
func isRetry(a load.Answer) bool {
	return (a.Status == http.StatusTooManyRequests || a.Status == http.StatusServiceUnavailable) && a.After > 0
}
