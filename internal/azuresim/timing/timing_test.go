package timing_test

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/timing"
)

func TestParseRange(t *testing.T) {
	for text, want := range map[string]timing.Range{
		"2s":      timing.Fixed(2 * time.Second),
		"0s":      {},
		"40s-60s": {Min: 40 * time.Second, Max: time.Minute},
		"1.5s-1m": {Min: 1500 * time.Millisecond, Max: time.Minute},
	} {
		if got, err := timing.ParseRange(text); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", text, got, err, want)
		}
	}
}

func TestParseRangeRefuses(t *testing.T) {
	for text, words := range map[string]string{
		"":        "want a duration such as 2s",
		"soon":    "want a duration such as 2s",
		"-1s":     "want a duration such as 2s",
		"1s-":     "want a duration such as 2s",
		"1s-2":    "want a duration such as 2s",
		"60s-40s": "its end lies before its beginning",
	} {
		if got, err := timing.ParseRange(text); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: got %v, %v, want an error that says %q", text, got, err, words)
		}
	}
}

func TestRangeReadsAsItIsWritten(t *testing.T) {
	for _, r := range []timing.Range{{}, timing.Fixed(time.Second), {Min: 40 * time.Second, Max: time.Minute}} {
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var back timing.Range
		if err := json.Unmarshal(text, &back); err != nil || back != r {
			t.Errorf("%s: got %v, %v", text, back, err)
		}
	}
}

func TestDurationReadsAsGoWritesIt(t *testing.T) {
	text, err := json.Marshal(timing.Duration(1500 * time.Millisecond))
	if err != nil || string(text) != `"1.5s"` {
		t.Errorf("got %s, %v", text, err)
	}
	var d timing.Duration
	if err := json.Unmarshal([]byte(`"soon"`), &d); err == nil {
		t.Error("a word is taken for a duration")
	}
}

func TestDrawStaysInTheRangeAndRepeats(t *testing.T) {
	r := timing.Range{Min: 40 * time.Second, Max: time.Minute}
	seeded := func() *rand.Rand { return rand.New(rand.NewPCG(7, 7)) }
	one, other, differ := seeded(), seeded(), false
	for range 1000 {
		d, first := r.Draw(one), r.Min
		if again := r.Draw(other); again != d {
			t.Fatalf("the same seed drew %s and %s", d, again)
		}
		if d < r.Min || d > r.Max {
			t.Fatalf("drew %s of %s", d, r)
		}
		differ = differ || d != first
	}
	if !differ {
		t.Error("it always draws the same")
	}
	if got := timing.Fixed(time.Second).Draw(one); got != time.Second {
		t.Errorf("a fixed range drew %s", got)
	}
}
