package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// opaque is an expression that none of our rules holds, so that it equals none.
// The nftables package drops expressions that it does not know, which would
// make a rule with one more of them look like ours.
type opaque struct{ expr.Any }

// decodeComment returns the comment, or all of the data if that is anything
// else than one comment: a type, a length and a string that ends with a zero.
func decodeComment(data []byte) string {
	if len(data) > 3 && string(encodeComment(string(data[2:len(data)-1]))) == string(data) {
		return string(data[2 : len(data)-1])
	}
	return string(data)
}

func encodeComment(comment string) []byte {
	return userdata.AppendString(nil, userdata.TypeComment, comment)
}

func decodeExpr(ad *netlink.AttributeDecoder) (expr.Any, error) {
	var name string
	var data []byte
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_EXPR_NAME:
			name = ad.String()
		case unix.NFTA_EXPR_DATA:
			data = ad.Bytes()
		}
	}
	e := newExpr(name)
	switch e := e.(type) {
	case opaque:
		return e, nil
	case *expr.Ct:
		return e, decodeCt(data, e)
	}
	if err := expr.Unmarshal(unix.NFPROTO_IPV4, data, e); err != nil {
		return nil, fmt.Errorf("decoding expression %s: %w", name, err)
	}
	if i, ok := e.(*expr.Immediate); ok && i.Register == unix.NFT_REG_VERDICT {
		e = &expr.Verdict{}
		if err := expr.Unmarshal(unix.NFPROTO_IPV4, data, e); err != nil {
			return nil, fmt.Errorf("decoding verdict: %w", err)
		}
	}
	return e, nil
}

// decodeCt reads an expression that loads a part of a connection. The nftables
// package takes the direction for a wider number than the kernel sends.
func decodeCt(data []byte, e *expr.Ct) error {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_CT_KEY:
			e.Key = expr.CtKey(ad.Uint32())
		case unix.NFTA_CT_DREG:
			e.Register = ad.Uint32()
		case unix.NFTA_CT_SREG:
			e.Register, e.SourceRegister = ad.Uint32(), true
		case unix.NFTA_CT_DIRECTION:
			e.Direction = uint32(ad.Uint8())
		}
	}
	return ad.Err()
}

func newExpr(name string) expr.Any {
	switch name {
	case "meta":
		return &expr.Meta{}
	case "payload":
		return &expr.Payload{}
	case "cmp":
		return &expr.Cmp{}
	case "ct":
		return &expr.Ct{}
	case "nat":
		return &expr.NAT{}
	case "immediate":
		return &expr.Immediate{}
	case "reject":
		return &expr.Reject{}
	}
	return opaque{}
}
