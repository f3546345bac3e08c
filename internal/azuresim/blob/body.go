package blob

import (
	"bytes"
	"crypto/md5" //nolint:gosec // Storage's Content-MD5, a checksum and no protection
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/state"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/wire"
)

// maxPage is how many blobs one answer holds at most.
const maxPage = 5000

// marshal writes XML as Storage does: behind a byte order mark, and with line
// breaks as they are.
func marshal(v any) ([]byte, error) {
	body, err := xml.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding XML: %w", err)
	}
	body = bytes.ReplaceAll(body, []byte("&#xA;"), []byte("\n"))
	return append([]byte("\ufeff<?xml version=\"1.0\" encoding=\"utf-8\"?>"), body...), nil
}

type errorBody struct {
	XMLName xml.Name `xml:"Error"`
	Code    string
	Message string
	Detail  string `xml:"AuthenticationErrorDetail,omitempty"`
}

// render also sets the headers that stand on every error.
func (s *Server) render(call *wire.Call, e *wire.Error) any {
	id := uuid.NewString()
	if e.Header == nil {
		e.Header = http.Header{}
	}
	e.Header.Set("X-Ms-Error-Code", e.Code)
	e.Header.Set("X-Ms-Request-Id", id)
	if version := call.Header.Get("x-ms-version"); version != "" {
		e.Header.Set("X-Ms-Version", version)
	}
	return errorBody{
		Code: e.Code, Detail: e.Detail,
		Message: fmt.Sprintf("%s\nRequestId:%s\nTime:%s", e.Message, id, s.Now().UTC().Format("2006-01-02T15:04:05.0000000Z")),
	}
}

// page is which part of a container is asked for. A nil field was not given, and
// is not in the answer.
type page struct {
	prefix, marker *string
	limit          *int
}

func parsePage(call *wire.Call) (page, error) {
	query, err := wire.Query(call, "restype", "comp", "prefix", "marker", "maxresults")
	if err != nil {
		return page{}, err
	}
	var p page
	for name, field := range map[string]**string{"prefix": &p.prefix, "marker": &p.marker} {
		if query.Has(name) {
			*field = new(query.Get(name))
		}
	}
	if !query.Has("maxresults") {
		return p, nil
	}
	limit, err := strconv.Atoi(query.Get("maxresults"))
	if err != nil || limit < 1 {
		return p, wire.Refuse(http.StatusBadRequest, "OutOfRangeQueryParameterValue",
			"One of the query parameters specified in the request URI is outside the permissible range.")
	}
	p.limit = new(min(limit, maxPage))
	return p, nil
}

type listBody struct {
	XMLName    xml.Name   `xml:"EnumerationResults"`
	Endpoint   string     `xml:"ServiceEndpoint,attr"`
	Container  string     `xml:"ContainerName,attr"`
	Prefix     *string    `xml:"Prefix"`
	Marker     *string    `xml:"Marker"`
	MaxResults *int       `xml:"MaxResults"`
	Blobs      []blobBody `xml:"Blobs>Blob"`
	NextMarker string     `xml:"NextMarker"`
}

type blobBody struct {
	Name       string
	Properties blobProperties
	OrMetadata struct{}
}

// blobProperties are a documented subset, in Storage's order.
type blobProperties struct {
	Created       string `xml:"Creation-Time"`
	Modified      string `xml:"Last-Modified"`
	ETag          string `xml:"Etag"`
	Length        int    `xml:"Content-Length"`
	ContentType   string `xml:"Content-Type"`
	MD5           string `xml:"Content-MD5"`
	BlobType      string
	AccessTier    string
	TierInferred  bool `xml:"AccessTierInferred"`
	LeaseStatus   string
	LeaseState    string
	ServerEncrypt bool `xml:"ServerEncrypted"`
}

// of cuts the page out of a container's blobs, which are sorted by name. The
// marker is the name of the page's first blob.
func (p page) of(blobs []state.Blob, account, container string) listBody {
	body := listBody{
		Endpoint: "https://" + account + HostSuffix + "/", Container: container,
		Prefix: p.prefix, Marker: p.marker, MaxResults: p.limit,
	}
	blobs = slices.DeleteFunc(blobs, func(b state.Blob) bool {
		return p.prefix != nil && !strings.HasPrefix(b.Name, *p.prefix) || p.marker != nil && b.Name < *p.marker
	})
	limit := maxPage
	if p.limit != nil {
		limit = *p.limit
	}
	if len(blobs) > limit {
		body.NextMarker, blobs = blobs[limit].Name, blobs[:limit]
	}
	for _, b := range blobs {
		body.Blobs = append(body.Blobs, encodeBlob(b))
	}
	return body
}

func encodeBlob(b state.Blob) blobBody {
	sum := md5.Sum([]byte(b.Content)) //nolint:gosec // a checksum, as above
	modified := b.Modified.UTC().Format(http.TimeFormat)
	return blobBody{Name: b.Name, Properties: blobProperties{
		Created: modified, Modified: modified, ETag: etag(b.Modified), Length: len(b.Content),
		ContentType: "application/octet-stream", MD5: base64.StdEncoding.EncodeToString(sum[:]),
		BlobType: "BlockBlob", AccessTier: "Hot", TierInferred: true, LeaseStatus: "unlocked", LeaseState: "available", ServerEncrypt: true,
	}}
}

func etag(t time.Time) string { return fmt.Sprintf("0x%X", t.UnixNano()) }
