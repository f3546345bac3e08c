package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/obs"
)

// process reads what the kernel knows of one.
type process struct{ pid int }

// tick is the kernel's unit of CPU time in /proc, on every architecture that
// Kubernetes runs on.
const tick = 10 * time.Millisecond

// cpu returns the time that the process has used.
func (p process) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0, fmt.Errorf("reading the CPU time: %w", err)
	}
	// The name, in parentheses, may hold anything.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("reading the CPU time: %d fields", len(fields))
	}
	user, err := strconv.Atoi(string(fields[11]))
	if err != nil {
		return 0, fmt.Errorf("reading the CPU time: %w", err)
	}
	system, err := strconv.Atoi(string(fields[12]))
	if err != nil {
		return 0, fmt.Errorf("reading the CPU time: %w", err)
	}
	return time.Duration(user+system) * tick, nil
}

// memory returns the resident and the anonymous memory, in MiB.
func (p process) memory() (resident, anonymous float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid))
	if err != nil {
		return 0, 0, fmt.Errorf("reading the memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(fields[1], 64) // the first line is none of these
		switch fields[0] {
		case "Rss:":
			resident = kib / 1024
		case "Anonymous:":
			anonymous = kib / 1024
		}
	}
	return resident, anonymous, nil
}

// bareCommand makes this program the bare handler, a process of its own as NMI
// is.
const bareCommand = "bare"

// serveBare answers every request with the file's bytes, and decides nothing.
func serveBare(ctx context.Context, address, file string) error {
	body, err := os.ReadFile(file) //nolint:gosec // this program's own file
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	listener, err := obs.Listen(ctx, address, bareCommand)
	if err != nil {
		return err
	}
	return obs.Serve(ctx, listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body) //nolint:gosec // bytes of this program's own; who left needs none
	}), time.Second)
}
