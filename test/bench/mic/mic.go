package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// mic is the running controller.
type mic struct {
	cmd            *exec.Cmd
	probe, metrics string // URLs
	log            string
	done           chan struct{} // closed when it has ended
}

// startMIC starts MIC as the chart does, with the shipped rights, and waits until
// it leads.
func (w *world) startMIC(ctx context.Context) error {
	kubeconfig, err := w.cluster.kubeconfig(ctx)
	if err != nil {
		return err
	}
	ports, err := freePorts(ctx, 2)
	if err != nil {
		return err
	}
	w.started++
	m := &mic{
		probe: "http://127.0.0.1:" + ports[0], metrics: "http://127.0.0.1:" + ports[1],
		log: filepath.Join(w.dir, fmt.Sprintf("mic-%d.log", w.started)), done: make(chan struct{}),
	}
	out, err := os.Create(m.log)
	if err != nil {
		return fmt.Errorf("opening MIC's log: %w", err)
	}
	defer out.Close()
	m.cmd = exec.CommandContext(context.WithoutCancel(ctx), w.options.mic, //nolint:gosec // the program to measure
		"--kubeconfig="+kubeconfig, "--cloudconfig="+w.azure.cloudConfig(), "--http-probe-port="+ports[0], "--prometheus-port="+ports[1])
	m.cmd.Env = []string{"MIC_POD_NAMESPACE=" + micNamespace, "HTTPS_PROXY=http://" + w.azure.proxy, "SSL_CERT_FILE=" + w.azure.caFile()}
	m.cmd.Stdout, m.cmd.Stderr = out, out
	if err := m.cmd.Start(); err != nil {
		return fmt.Errorf("starting MIC: %w (run make build)", err)
	}
	go func() {
		defer close(m.done)
		_ = m.cmd.Wait() // its log says why it ended
	}()
	w.mic = m
	return m.await(ctx, "MIC to lead", func() (bool, error) {
		body, err := m.get(ctx, m.probe+"/healthz")
		return body == "Active", err
	})
}

func freePorts(ctx context.Context, n int) ([]string, error) {
	var out []string
	for range n {
		var open net.ListenConfig
		l, err := open.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("looking for a free port: %w", err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		out = append(out, port)
	}
	return out, nil
}

// stop ends MIC as a kubelet does.
func (m *mic) stop() error {
	if err := m.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping MIC: %w", err)
	}
	select {
	case <-m.done:
	case <-time.After(30 * time.Second):
		_ = m.cmd.Process.Kill()
		<-m.done
	}
	return nil
}

// await asks four times a second until check says true. MIC's own end is one of
// the reasons to stop. A check that fails is tried again.
func (m *mic) await(ctx context.Context, what string, check func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	for {
		ok, err := check()
		if ok {
			return nil
		}
		select {
		case <-ticker.C:
		case <-m.done:
			text, _ := os.ReadFile(m.log)
			return fmt.Errorf("waiting for %s: MIC ended: %s", what, text[max(0, len(text)-2000):])
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, errors.Join(ctx.Err(), err))
		}
	}
}

func (m *mic) get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", fmt.Errorf("asking MIC: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", fmt.Errorf("asking MIC: %w", err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", fmt.Errorf("reading MIC's answer: %w", err)
	}
	return string(body), nil
}

// quiet waits until MIC has nothing to do and has written nothing for as long.
func (w *world) quiet(ctx context.Context, long time.Duration) error {
	since, last := time.Now(), int64(-1)
	return w.mic.await(ctx, "MIC to be done", func() (bool, error) {
		text, err := w.mic.get(ctx, w.mic.metrics+"/metrics")
		if err != nil {
			return false, err
		}
		log, err := os.Stat(w.cluster.auditLog())
		if err != nil {
			return false, fmt.Errorf("looking at the audit log: %w", err)
		}
		busy := sum(text, "workqueue_depth") + sum(text, "controller_runtime_active_workers")
		// A renewal of the Lease is two lines of some 700 bytes.
		if busy > 0 || log.Size() > last+4096 {
			since, last = time.Now(), log.Size()
		}
		return time.Since(since) >= long, nil
	})
}

// sum adds the values of all series of a metric.
func sum(text, metric string) float64 {
	total := 0.0
	for line := range strings.Lines(text) {
		name, _, _ := strings.Cut(line, " ")
		name, _, _ = strings.Cut(name, "{")
		fields := strings.Fields(line)
		if name != metric || len(fields) == 0 {
			continue
		}
		if value, err := strconv.ParseFloat(fields[len(fields)-1], 64); err == nil {
			total += value
		}
	}
	return total
}

// cpu is the processor time that MIC has used, to 10 ms.
func (m *mic) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("reading MIC's processor time: %w", err)
	}
	return cpuOf(string(text))
}

// cpuOf reads /proc/PID/stat, in which user and system time are the 14th and 15th
// field, in hundredths of a second.
func cpuOf(stat string) (time.Duration, error) {
	_, after, _ := strings.Cut(stat[max(0, strings.LastIndex(stat, ")")):], ") ")
	fields := strings.Fields(after)
	if len(fields) < 13 {
		return 0, fmt.Errorf("reading the processor time: %q is no stat line", stat)
	}
	user, errUser := strconv.Atoi(fields[11])
	system, errSystem := strconv.Atoi(fields[12])
	if err := errors.Join(errUser, errSystem); err != nil {
		return 0, fmt.Errorf("reading the processor time: %w", err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond, nil
}

// memory returns MIC's resident memory in MiB: VmRSS now, VmHWM at its peak.
func (m *mic) memory(field string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
	if err != nil {
		return 0, fmt.Errorf("reading MIC's memory: %w", err)
	}
	return memoryOf(string(text), field)
}

func memoryOf(status, field string) (float64, error) {
	scanner := bufio.NewScanner(strings.NewReader(status))
	for scanner.Scan() {
		if value, ok := strings.CutPrefix(scanner.Text(), field+":"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 64)
			if err != nil {
				return 0, fmt.Errorf("reading %s: %w", field, err)
			}
			return kib / 1024, nil
		}
	}
	return 0, fmt.Errorf("reading the memory: there is no %s", field)
}
