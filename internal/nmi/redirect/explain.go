package redirect

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Reasons why nothing can be redirected, whatever is tried again.
var (
	// ErrCapability is wrapped when the process lacks a right.
	ErrCapability = errors.New("needs CAP_NET_ADMIN in the node's network namespace: run as root, with the capability NET_ADMIN")

	// ErrKernel is wrapped when the kernel lacks a part.
	ErrKernel = errors.New("the kernel lacks nftables, or its support for NAT or connection tracking in the family ip: " +
		"needs Linux 5.12 or newer with CONFIG_NF_TABLES, CONFIG_NF_TABLES_IPV4, CONFIG_NFT_NAT, CONFIG_NFT_CT and CONFIG_NFT_REJECT, and modules that are allowed to load")

	// ErrHeld is wrapped when the redirect belongs to another process that runs.
	ErrHeld = errors.New("the redirect belongs to another process: does another NMI run on this node?")
)

// explain adds what an answer of nftables means here.
func explain(err error) error {
	if errors.Is(err, ErrHeld) {
		return err
	}
	// A chain type or an expression that the kernel does not have is ENOENT; a
	// whole subsystem is EINVAL when it is asked and EOPNOTSUPP when it is told.
	for _, missing := range []error{
		unix.ENOENT, unix.EINVAL, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT,
	} {
		if errors.Is(err, missing) {
			return fmt.Errorf("%w: %w", ErrKernel, err)
		}
	}
	return denied(err)
}

// denied adds what is lacking when the kernel refuses anything.
func denied(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w: %w", ErrCapability, err)
	}
	return err
}
