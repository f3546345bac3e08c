package state

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
)

// Settings returns how Azure behaves at present.
func (s *State) Settings() settings.Settings {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settings
}

// Behave puts new settings in force for what begins from now on. The error wraps
// [ErrInvalid].
func (s *State) Behave(as settings.Settings) error {
	if err := checked(&as)(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behave(as)
	return nil
}

func (s *State) behave(as settings.Settings) {
	s.settings = as
	s.random = rand.New(rand.NewPCG(as.Seed, as.Seed)) //nolint:gosec // repeatable on purpose
}

// adopt puts a document in force that has been checked.
func (s *State) adopt(t tables, as *settings.Settings) {
	s.t = t
	if as != nil {
		s.behave(*as)
	}
}

// checked returns the step that refuses settings that cannot be right.
func checked(as *settings.Settings) func() error {
	return func() error {
		if as == nil {
			return nil
		}
		if err := as.Validate(); err != nil {
			return fmt.Errorf("%w: settings: %w", ErrInvalid, err)
		}
		return nil
	}
}

// IMDSLatency draws how long IMDS thinks, in real time.
func (s *State) IMDSLatency() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settings.Compress(s.settings.IMDS.Latency.Draw(s.random))
}

// latency draws how long an operation on a resource runs, in real time.
func (s *State) latency(kind string) time.Duration {
	drawn := s.settings.ARM.Latency.ScaleSet
	if kind == TypeVirtualMachine {
		drawn = s.settings.ARM.Latency.VM
	}
	return s.settings.Compress(drawn.Draw(s.random))
}
