package selfprobe

import (
	"net"
	"net/netip"
	"testing"
)

func TestASegmentOnTheWire(t *testing.T) {
	s := segment{
		from: netip.MustParseAddrPort("192.0.2.254:40000"), to: netip.MustParseAddrPort("169.254.169.254:80"),
		seq: 0x01020304, ack: 0x05060708, flags: flagSYN,
	}
	from, to := net.HardwareAddr{2, 0, 0, 0, 0, 1}, net.HardwareAddr{2, 0, 0, 0, 0, 2}
	frame := s.frame(from, to)
	if got, ok := parse(frame); !ok || got != s {
		t.Errorf("read %+v, %v", got, ok)
	}
	ip, tcp := frame[sizeofEthernet:sizeofEthernet+sizeofIP], frame[sizeofEthernet+sizeofIP:]
	if ip[8] != 1 {
		t.Errorf("a packet may go %d hops", ip[8])
	}
	// A sum over what has its checksum is zero.
	if got := checksum(0, ip); got != 0 {
		t.Errorf("checksum of the IP header: %#x", got)
	}
	pseudo := append(append([]byte{}, ip[12:20]...), 0, 6, 0, sizeofTCP)
	if got := checksum(sum(0, pseudo), tcp); got != 0 {
		t.Errorf("checksum of the segment: %#x", got)
	}
}

func TestAnswers(t *testing.T) {
	imds, pod := netip.MustParseAddrPort("169.254.169.254:80"), netip.MustParseAddrPort("192.0.2.254:40000")
	syn := segment{from: pod, to: imds, seq: 0xffffffff, flags: flagSYN}
	for name, test := range map[string]struct {
		got  segment
		want bool
	}{
		"accepted":               {segment{from: imds, to: pod, seq: 9, ack: 0, flags: flagSYN | flagACK}, true},
		"refused":                {segment{from: imds, to: pod, ack: 0, flags: flagRST | flagACK}, true},
		"of another connection":  {segment{from: imds, to: netip.MustParseAddrPort("192.0.2.254:40001"), flags: flagSYN | flagACK}, false},
		"of an earlier SYN":      {segment{from: imds, to: pod, ack: 7, flags: flagSYN | flagACK}, false},
		"by somebody else":       {segment{from: netip.MustParseAddrPort("127.0.0.1:2579"), to: pod, flags: flagSYN | flagACK}, false},
		"the SYN itself":         {syn, false},
		"an acknowledgment only": {segment{from: imds, to: pod, flags: flagACK}, false},
	} {
		if got := answers(test.got, syn); got != test.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(segment{from: netip.MustParseAddrPort("192.0.2.254:40000"), to: netip.MustParseAddrPort("169.254.169.254:80")}.frame(make([]byte, 6), make([]byte, 6)))
	f.Add(make([]byte, 34))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if got, ok := parse(frame); ok && (!got.from.IsValid() || len(frame) < 54) {
			t.Errorf("read %+v from %d bytes", got, len(frame))
		}
	})
}
