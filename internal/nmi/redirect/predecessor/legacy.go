package predecessor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Options of getsockopt for the tables of legacy iptables, and the sizes of what
// they take and give, as in linux/netfilter_ipv4/ip_tables.h for 64 bits.
const (
	getInfo    = 64 // IPT_SO_GET_INFO
	getEntries = 65 // IPT_SO_GET_ENTRIES

	infoLen      = 84 // struct ipt_getinfo
	infoSizeAt   = 80 // its field size: how many bytes the entries take
	entriesAt    = 40 // struct ipt_get_entries: the entries begin behind name and size
	tableNameLen = 32

	entryLen      = 112 // struct ipt_entry
	entryTargetAt = 88  // its field target_offset
	entryNextAt   = 90  // its field next_offset

	targetNameAt  = 2  // struct xt_entry_target: the name begins behind a size
	targetNameLen = 29 //
	targetLen     = 32 //
	errorNameLen  = 30 // struct xt_error_target: behind the target
)

// errorTarget is the name of the target with which a chain of a user's begins.
const errorTarget = "ERROR"

// tablesFile names the tables that exist; it is there if the kernel has legacy
// iptables at all.
const tablesFile = "/proc/thread-self/net/ip_tables_names"

// legacyHas says whether the chain is in legacy iptables. A table that does not
// exist is not asked for: that would make it.
func legacyHas(namespace int) (bool, error) {
	var has bool
	err := inside(namespace, func() error {
		names, err := os.ReadFile(tablesFile)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading which tables there are: %w", err)
		}
		for name := range strings.Lines(string(names)) {
			if strings.TrimSpace(name) == tableName {
				has, err = tableHas(chainName)
			}
		}
		return err
	})
	return has, err
}

// inside runs f on a thread in a network namespace. The thread ends with it.
func inside(namespace int, f func() error) error {
	if namespace == 0 {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if err := netns.Set(netns.NsHandle(namespace)); err != nil {
			done <- fmt.Errorf("entering network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// tableHas reads the whole table, which may grow meanwhile.
func tableHas(chain string) (bool, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(socket) }()
	for range 5 {
		info := make([]byte, infoLen)
		copy(info, tableName)
		if err := getsockopt(socket, getInfo, info); err != nil {
			return false, fmt.Errorf("reading the size of table %s: %w", tableName, err)
		}
		size := binary.NativeEndian.Uint32(info[infoSizeAt:])
		entries := make([]byte, entriesAt+int(size))
		copy(entries, tableName)
		binary.NativeEndian.PutUint32(entries[tableNameLen:], size)
		err := getsockopt(socket, getEntries, entries)
		if errors.Is(err, unix.EAGAIN) { // it is not of that size any more
			continue
		}
		if err != nil {
			return false, fmt.Errorf("reading table %s: %w", tableName, err)
		}
		return entriesHave(entries[entriesAt:], chain)
	}
	return false, fmt.Errorf("reading table %s: it changes all the time", tableName)
}

// entriesHave goes through the entries of a table, and looks for the one that a
// user's chain of the name begins with.
func entriesHave(entries []byte, chain string) (bool, error) {
	for len(entries) > 0 {
		if len(entries) < entryLen {
			return false, fmt.Errorf("reading an entry of table %s: %d bytes are left, want %d", tableName, len(entries), entryLen)
		}
		target := int(binary.NativeEndian.Uint16(entries[entryTargetAt:]))
		next := int(binary.NativeEndian.Uint16(entries[entryNextAt:]))
		if target < entryLen || next < target+targetLen || next > len(entries) {
			return false, fmt.Errorf("reading an entry of table %s: its target is at %d and its end at %d of %d bytes", tableName, target, next, len(entries))
		}
		if text(entries[target+targetNameAt:next], targetNameLen) == errorTarget &&
			text(entries[target+targetLen:next], errorNameLen) == chain {
			return true, nil
		}
		entries = entries[next:]
	}
	return false, nil
}

// text reads a string of at most limit bytes that ends with a zero.
func text(data []byte, limit int) string {
	data = data[:min(limit, len(data))]
	if end := bytes.IndexByte(data, 0); end >= 0 {
		data = data[:end]
	}
	return string(data)
}

// getsockopt is the system call, for options that are no numbers.
func getsockopt(socket, option int, data []byte) error {
	length := uint32(len(data)) //nolint:gosec // a table is at most 512 MiB
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(socket), unix.IPPROTO_IP, uintptr(option),
		uintptr(unsafe.Pointer(unsafe.SliceData(data))), uintptr(unsafe.Pointer(&length)), 0) //nolint:gosec // the kernel writes to both, and keeps neither
	if errno != 0 {
		return os.NewSyscallError("getsockopt", errno)
	}
	return nil
}
