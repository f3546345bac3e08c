package replica

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Sum adds the values of all series of a metric.
func Sum(text, metric string) float64 {
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

// CPU is the processor time that MIC has used, to 10 ms.
func (m *MIC) CPU() (time.Duration, error) {
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

// Memory returns MIC's resident memory in MiB: VmRSS now, VmHWM at its peak.
func (m *MIC) Memory(field string) (float64, error) {
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
