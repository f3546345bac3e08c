package options

import (
	"testing"
	"time"
)

func TestAFileThatCannotBeReadMaySayAnything(t *testing.T) {
	o := Proof{KubeletConfig: t.TempDir()} // a folder
	if kubenet, err := o.Kubenet(); !kubenet || err == nil {
		t.Errorf("got %v, %v", kubenet, err)
	}
	o.KubeletConfig = ""
	if kubenet, err := o.Kubenet(); kubenet || err != nil {
		t.Errorf("no file: got %v, %v", kubenet, err)
	}
}

func TestTheIntervalOfProbes(t *testing.T) {
	for interval, want := range map[time.Duration]bool{0: true, time.Second: true, time.Millisecond: false, time.Hour: false, -1: false} {
		o := Proof{ProbeInterval: interval}
		if err := o.check(); (err == nil) != want {
			t.Errorf("%s: %v", interval, err)
		}
	}
}
