package kube

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// lines takes the events of a watch apart where each ends: the API server writes a
// newline after every event in JSON and none within, and official clients in other
// languages rely on it. The usual framer reads the whole text for that.
type lines struct{ runtime.Framer }

// NewFrameReader implements [runtime.Framer].
func (lines) NewFrameReader(r io.ReadCloser) io.ReadCloser {
	return &lineReader{Closer: r, in: bufio.NewReaderSize(r, 16<<10)}
}

// lineReader reads a line at a time. It is not safe for concurrent use.
type lineReader struct {
	io.Closer

	in   *bufio.Reader
	rest []byte // of the line, within the buffer
	more bool   // after rest the line goes on
}

// Read reads a line with its newline. Of one that does not fit it reads a part, with
// [io.ErrShortBuffer]; one that breaks off is [io.ErrUnexpectedEOF].
func (l *lineReader) Read(into []byte) (n int, err error) {
	for {
		if len(l.rest) == 0 {
			if err := l.fill(); err != nil {
				return 0, err
			}
		}
		part := copy(into[n:], l.rest)
		n, l.rest = n+part, l.rest[part:]
		switch {
		case len(l.rest) == 0 && !l.more:
			return n, nil
		case n == len(into):
			return n, io.ErrShortBuffer
		}
	}
}

func (l *lineReader) fill() (err error) {
	begun := l.more
	l.rest, err = l.in.ReadSlice('\n')
	if l.more = errors.Is(err, bufio.ErrBufferFull); l.more {
		return nil
	}
	if errors.Is(err, io.EOF) && (begun || len(l.rest) > 0) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		l.rest = nil
	}
	return err //nolint:wrapcheck // readers end by the very errors
}

// events reads the events of a watch. One that is written as the API server does is
// taken apart without being read; what is in it is read later.
type events struct{ runtime.Serializer }

// Decode implements [runtime.Decoder]. The object of an event is good until data is
// changed.
func (e events) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	if event, ok := into.(*metav1.WatchEvent); ok {
		if kind, object, ok := cutEvent(data); ok {
			event.Type, event.Object.Raw = kind, object
			return event, &schema.GroupVersionKind{}, nil
		}
	}
	return e.Serializer.Decode(data, defaults, into) //nolint:wrapcheck // it stands in its place
}

func cutEvent(line []byte) (kind string, object []byte, ok bool) {
	kindAndMore, isEvent := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte(`{"type":"`))
	word, rest, hasObject := bytes.Cut(kindAndMore, []byte(`","object":`))
	object, ended := bytes.CutSuffix(rest, []byte("}"))
	if !isEvent || !hasObject || !ended || len(word) == 0 || bytes.ContainsFunc(word, notCapital) {
		return "", nil, false
	}
	// Nothing may follow the object.
	return string(word), object, bytes.HasPrefix(object, []byte("{")) && json.Valid(object)
}

func notCapital(r rune) bool { return r < 'A' || r > 'Z' }
