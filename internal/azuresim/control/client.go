// Package control is the Go client of the simulator's control API.
//
// It is for tests and for the demo, which set Azure up with it, break it and
// wait for what happens. It must import nothing but the plain data of the
// simulator, so that it can be used alone against a running process.
package control

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/fault"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/journal"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/model"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/poison"
	"github.com/aad-pod-identity/aad-pod-identity/internal/azuresim/settings"
)

// pollFor is how long one request for the journal stays open, below the server's
// own limit.
const pollFor = 20 * time.Second

// Client calls one simulator. It is safe for concurrent use.
type Client struct {
	base string
	http *http.Client
}

// New returns a client for the control API at base, such as
// http://127.0.0.1:8090. A nil http.Client is the default one.
func New(base string, client *http.Client) *Client {
	if client == nil {
		client = http.DefaultClient
	}
	return &Client{base: strings.TrimSuffix(base, "/"), http: client}
}

// Error is a refusal of the control API, in words.
type Error struct {
	Status  int    `json:"-"`
	Message string `json:"error"`
}

func (e *Error) Error() string { return e.Message }

// Ready reports nil once the simulator serves.
func (c *Client) Ready(ctx context.Context) error {
	return c.do(ctx, http.MethodGet, "/healthz", nil, nil)
}

// State reads everything; secrets are blank.
func (c *Client) State(ctx context.Context) (model.Document, error) {
	var doc model.Document
	return doc, c.do(ctx, http.MethodGet, "/state", nil, &doc)
}

// Replace loads doc in place of everything.
func (c *Client) Replace(ctx context.Context, doc model.Document) error {
	return c.do(ctx, http.MethodPut, "/state", doc, nil)
}

// Add loads doc beside what is there and returns what was added, with the IDs
// that the simulator chose.
func (c *Client) Add(ctx context.Context, doc model.Document) (model.Document, error) {
	var added model.Document
	return added, c.do(ctx, http.MethodPost, "/state", doc, &added)
}

// AddIdentity makes a user-assigned identity.
func (c *Client) AddIdentity(ctx context.Context, i model.Identity) (model.Identity, error) {
	return addOne(ctx, c, "/identities", i)
}

// AddApplication makes an application with its service principal.
func (c *Client) AddApplication(ctx context.Context, a model.Application) (model.Application, error) {
	return addOne(ctx, c, "/applications", a)
}

// AddScaleSet makes a scale set.
func (c *Client) AddScaleSet(ctx context.Context, v model.ScaleSet) (model.ScaleSet, error) {
	return addOne(ctx, c, "/scaleSets", v)
}

// AddVirtualMachine makes a virtual machine with identities of its own.
func (c *Client) AddVirtualMachine(ctx context.Context, v model.VirtualMachine) (model.VirtualMachine, error) {
	return addOne(ctx, c, "/virtualMachines", v)
}

// AddNode makes an instance of a scale set, or makes a virtual machine a node.
func (c *Client) AddNode(ctx context.Context, n model.Node) (model.Node, error) {
	return addOne(ctx, c, "/nodes", n)
}

// AssignRole gives a principal a role.
func (c *Client) AssignRole(ctx context.Context, a model.RoleAssignment) (model.RoleAssignment, error) {
	return addOne(ctx, c, "/roleAssignments", a)
}

// AddVault makes a key vault.
func (c *Client) AddVault(ctx context.Context, v model.Vault) (model.Vault, error) {
	return addOne(ctx, c, "/vaults", v)
}

// AddStorageAccount makes a storage account with its containers and blobs.
func (c *Client) AddStorageAccount(ctx context.Context, a model.StorageAccount) (model.StorageAccount, error) {
	return addOne(ctx, c, "/storageAccounts", a)
}

// PutSecret writes a new version of a secret.
func (c *Client) PutSecret(ctx context.Context, vault string, s model.VaultSecret) (model.VaultSecret, error) {
	return addOne(ctx, c, "/vaults/"+url.PathEscape(vault)+"/secrets", s)
}

// Attach puts an identity on a scale set at once, as an operator would.
func (c *Client) Attach(ctx context.Context, scaleSet, identity string) error {
	return c.do(ctx, http.MethodPost, "/attachments", model.Attachment{ScaleSet: scaleSet, Identity: identity}, nil)
}

// AttachToVM puts an identity on a virtual machine at once, as an operator would.
func (c *Client) AttachToVM(ctx context.Context, vm, identity string) error {
	return c.do(ctx, http.MethodPost, "/attachments", model.Attachment{VM: vm, Identity: identity}, nil)
}

// Settings reads how Azure behaves.
func (c *Client) Settings(ctx context.Context) (settings.Settings, error) {
	var as settings.Settings
	return as, c.do(ctx, http.MethodGet, "/settings", nil, &as)
}

// Behave changes how Azure behaves, for what begins from now on.
func (c *Client) Behave(ctx context.Context, as settings.Settings) error {
	return c.do(ctx, http.MethodPut, "/settings", as, nil)
}

// Poison makes ARM refuse an identity from now on.
func (c *Client) Poison(ctx context.Context, p poison.Poison) (poison.Poison, error) {
	return addOne(ctx, c, "/poison", p)
}

// Cure lets ARM take an identity again that was poison.
func (c *Client) Cure(ctx context.Context, identity string) error {
	return c.do(ctx, http.MethodDelete, "/poison", poison.Poison{Identity: identity}, nil)
}

// Delete removes an identity, a scale set or a virtual machine, or begins to.
func (c *Client) Delete(ctx context.Context, d model.Deletion) error {
	return c.do(ctx, http.MethodPost, "/deletions", d, nil)
}

// Recreate deletes an identity and makes it again under its name, as another
// one: where it is attached a null principal is left.
func (c *Client) Recreate(ctx context.Context, i model.Identity) (model.Identity, error) {
	if err := c.Delete(ctx, model.Deletion{Identity: i.ID}); err != nil {
		return model.Identity{}, err
	}
	return c.AddIdentity(ctx, i)
}

// Burst asks for a resource many times at once, as another client would, and
// returns how many tokens the buckets hold then.
func (c *Client) Burst(ctx context.Context, b model.Burst) (model.BurstResult, error) {
	var result model.BurstResult
	return result, c.do(ctx, http.MethodPost, "/bursts", b, &result)
}

// Detach takes an identity off a scale set or virtual machine at once, as an
// operator would.
func (c *Client) Detach(ctx context.Context, a model.Attachment) error {
	return c.do(ctx, http.MethodDelete, "/attachments", a, nil)
}

// AddFault plays f from now on and returns it with its ID.
func (c *Client) AddFault(ctx context.Context, f fault.Fault) (fault.Fault, error) {
	return addOne(ctx, c, "/faults", f)
}

// Faults lists the faults and how often each was played.
func (c *Client) Faults(ctx context.Context) ([]fault.Fault, error) {
	var list []fault.Fault
	return list, c.do(ctx, http.MethodGet, "/faults", nil, &list)
}

// RemoveFault ends a fault; an empty id ends all.
func (c *Client) RemoveFault(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, strings.TrimSuffix("/faults/"+url.PathEscape(id), "/"), nil, nil)
}

// Journal returns the kept entries above seq.
func (c *Client) Journal(ctx context.Context, seq uint64) ([]journal.Entry, error) {
	return c.entries(ctx, seq, 0)
}

// Counts returns how many requests of each kind there were since the start.
func (c *Client) Counts(ctx context.Context) ([]journal.Count, error) {
	var counts []journal.Count
	return counts, c.do(ctx, http.MethodGet, "/counts", nil, &counts)
}

// Wait returns the first kept or future entry above seq that match accepts. It
// blocks until there is one or ctx is done.
func (c *Client) Wait(ctx context.Context, seq uint64, match func(journal.Entry) bool) (journal.Entry, error) {
	for {
		entries, err := c.entries(ctx, seq, pollFor)
		if err != nil {
			return journal.Entry{}, fmt.Errorf("waiting for a journal entry above %d: %w", seq, err)
		}
		for _, e := range entries {
			if match(e) {
				return e, nil
			}
			seq = e.Seq
		}
	}
}

func (c *Client) entries(ctx context.Context, seq uint64, wait time.Duration) ([]journal.Entry, error) {
	query := url.Values{"since": {strconv.FormatUint(seq, 10)}}
	if wait > 0 {
		query.Set("wait", wait.String())
	}
	var entries []journal.Entry
	return entries, c.do(ctx, http.MethodGet, "/journal?"+query.Encode(), nil, &entries)
}

// CA returns the certificate, in PEM, that clients of the HTTPS listener trust.
func (c *Client) CA(ctx context.Context) ([]byte, error) {
	return c.fetch(ctx, http.MethodGet, "/ca", nil)
}

// Pool returns a certificate pool that trusts only the simulator.
func (c *Client) Pool(ctx context.Context) (*x509.CertPool, error) {
	text, err := c.CA(ctx)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("reading the simulator's CA: no certificate in the answer")
	}
	return pool, nil
}

func addOne[T any](ctx context.Context, c *Client, path string, item T) (T, error) {
	var added T
	return added, c.do(ctx, http.MethodPost, path, item, &added)
}

func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	text, err := c.fetch(ctx, method, path, in)
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("reading the answer to %s %s: %w", method, path, err)
	}
	return nil
}

func (c *Client) fetch(ctx context.Context, method, path string, in any) ([]byte, error) {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return nil, fmt.Errorf("encoding the body of %s %s: %w", method, path, err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, &body)
	if err != nil {
		return nil, fmt.Errorf("building %s %s: %w", method, path, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("calling the simulator: %w", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the answer to %s %s: %w", method, path, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return nil, fmt.Errorf("%s %s: %w", method, path, refusalOf(resp.StatusCode, text))
	}
	return text, nil
}

func refusalOf(status int, text []byte) *Error {
	refused := &Error{Status: status}
	if json.Unmarshal(text, refused) != nil || refused.Message == "" {
		refused.Message = strconv.Itoa(status) + ": " + strings.TrimSpace(string(text))
	}
	return refused
}
