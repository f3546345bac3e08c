// Package legacy speaks to the API server as the controller and the agent of AAD
// Pod Identity v1.8.17 do: the same methods, paths, content types and bodies, and
// the same fields read. Tests of an upgrade or a rollback use it beside ours.
//
// It must not use this project's types for what it sends or reads: they would
// hide what an old program sees.
package legacy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"k8s.io/client-go/rest"
)

// The contract's words.
const (
	Finalizer = "azureassignedidentity.finalizers.aadpodidentity.k8s.io"
	group     = "aadpodidentity.k8s.io/v1"
)

// Object is an object as it travels.
type Object = map[string]any

// Client sends the requests.
type Client struct {
	http *http.Client
	host string
}

// New returns a client with the rights of config.
func New(config *rest.Config) (*Client, error) {
	config = rest.CopyConfig(config)
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("preparing the old client: %w", err)
	}
	return &Client{http: client, host: strings.TrimSuffix(config.Host, "/")}, nil
}

// StatusError is an answer that is no success.
type StatusError struct {
	Method, Path string
	Code         int
	Body         string
}

// Error quotes the answer.
func (e *StatusError) Error() string {
	return fmt.Sprintf("%s %s: %d: %s", e.Method, e.Path, e.Code, e.Body)
}

// Is reports whether err is an answer with the status code.
func Is(err error, code int) bool {
	answer, ok := errors.AsType[*StatusError](err)
	return ok && answer.Code == code
}

func (c *Client) do(ctx context.Context, method, path, contentType string, body any) (Object, error) {
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encoding the body of %s %s: %w", method, path, err)
		}
		reader = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.host+path, reader)
	if err != nil {
		return nil, fmt.Errorf("preparing %s %s: %w", method, path, err)
	}
	request.Header.Set("Accept", "application/json, */*")
	request.Header.Set("Content-Type", contentType)
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("sending %s %s: %w", method, path, err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the answer to %s %s: %w", method, path, err)
	}
	if response.StatusCode >= http.StatusBadRequest {
		return nil, &StatusError{Method: method, Path: path, Code: response.StatusCode, Body: string(text)}
	}
	var out Object
	if err := json.Unmarshal(text, &out); err != nil {
		return nil, fmt.Errorf("decoding the answer to %s %s: %w", method, path, err)
	}
	return out, nil
}

const jsonType = "application/json"

func path(kind, namespace, name string) string {
	return strings.TrimSuffix("/apis/"+group+"/namespaces/"+namespace+"/"+kind+"/"+name, "/")
}

const assigned = "azureassignedidentities"

// Assignment is what the old controller knows of one assignment.
type Assignment struct {
	// Namespace is where the object is: default, or the identity's.
	Namespace string
	// Identity and Binding are the names of the objects; From is their namespace.
	From, Identity, Binding string
	Pod, PodNamespace, Node string
}

// Name returns the object's name.
func (a Assignment) Name() string { return a.Pod + "-" + a.PodNamespace + "-" + a.Identity }

// Create posts the assignment, as the old controller does before it asks ARM.
func (c *Client) Create(ctx context.Context, a Assignment) error {
	body, err := c.body(ctx, a)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPost, path(assigned, a.Namespace, ""), jsonType, body)
	return err
}

// SetStatus patches the state, as the old controller does once ARM is done.
func (c *Client) SetStatus(ctx context.Context, a Assignment, status string) error {
	patch := []Object{{"op": "replace", "path": "/status/status", "value": status}}
	_, err := c.do(ctx, http.MethodPatch, path(assigned, a.Namespace, a.Name()), "application/json-patch+json", patch)
	return err
}

// Update puts the assignment again with the state Created and with the metadata
// that the object has, as the old controller does when the identity or the node
// changes. Fields that it does not know are lost.
func (c *Client) Update(ctx context.Context, a Assignment) error {
	there, err := c.Get(ctx, a)
	if err != nil {
		return err
	}
	body, err := c.body(ctx, a)
	if err != nil {
		return err
	}
	labels := body["metadata"].(Object)["labels"] //nolint:forcetypeassert // made below
	body["metadata"] = there["metadata"]
	body["metadata"].(Object)["labels"] = labels //nolint:forcetypeassert // the API server's
	_, err = c.do(ctx, http.MethodPut, path(assigned, a.Namespace, a.Name()), jsonType, body)
	return err
}

// Delete takes the assignment away, as the old controller does once ARM took the
// identity off the node: PATCH Unassigned, DELETE, and then, if the answer shows
// an object with the finalizer, PUT without it.
func (c *Client) Delete(ctx context.Context, a Assignment) error {
	if err := c.SetStatus(ctx, a, "Unassigned"); err != nil {
		return err
	}
	return c.Finish(ctx, a)
}

// Finish is [Client.Delete] without its first step.
func (c *Client) Finish(ctx context.Context, a Assignment) error {
	left, err := c.Strike(ctx, a)
	if err != nil {
		return err
	}
	return c.Release(ctx, a, left)
}

// Strike is the DELETE alone. It returns what is left of the object, as the
// answer has it.
func (c *Client) Strike(ctx context.Context, a Assignment) (Object, error) {
	return c.do(ctx, http.MethodDelete, path(assigned, a.Namespace, a.Name()), jsonType, nil)
}

// Release is the PUT without the finalizer, if the object has it.
func (c *Client) Release(ctx context.Context, a Assignment, left Object) error {
	meta, _ := left["metadata"].(Object)
	finalizers, _ := meta["finalizers"].([]any)
	var kept []any
	for _, finalizer := range finalizers {
		if finalizer != Finalizer {
			kept = append(kept, finalizer)
		}
	}
	if len(kept) == len(finalizers) {
		return nil
	}
	meta["finalizers"] = kept
	_, err := c.do(ctx, http.MethodPut, path(assigned, a.Namespace, a.Name()), jsonType, left)
	return err
}

// Get returns the assignment as it is stored.
func (c *Client) Get(ctx context.Context, a Assignment) (Object, error) {
	return c.do(ctx, http.MethodGet, path(assigned, a.Namespace, a.Name()), jsonType, nil)
}

// Tokens returns the client IDs that an old agent on the node would ask tokens
// for, in the name of a pod that asks for no identity in particular.
func (c *Client) Tokens(ctx context.Context, node, podNamespace, pod string) ([]string, error) {
	list, err := c.do(ctx, http.MethodGet, "/apis/"+group+"/"+assigned+"?labelSelector="+url.QueryEscape("nodename="+node), jsonType, nil)
	if err != nil {
		return nil, err
	}
	byStatus := map[string][]string{}
	items, _ := list["items"].([]any)
	for _, item := range items {
		if text(item, "spec", "pod") != pod || text(item, "spec", "podNamespace") != podNamespace {
			continue
		}
		for field, kind := range map[string]string{"azureIdentityRef": "AzureIdentity", "azureBindingRef": "AzureIdentityBinding"} {
			if text(item, "spec", field, "kind") != kind || text(item, "spec", field, "apiVersion") != group {
				return nil, fmt.Errorf("an old agent cannot read %s of %s", field, text(item, "metadata", "name"))
			}
		}
		status := text(item, "status", "status")
		byStatus[status] = append(byStatus[status], text(item, "spec", "azureIdentityRef", "spec", "clientID"))
	}
	if old := byStatus[""]; len(old) > 0 {
		return old, nil
	}
	return byStatus["Assigned"], nil
}

func text(object any, fields ...string) string {
	for _, field := range fields {
		inner, _ := object.(Object)
		object = inner[field]
	}
	out, _ := object.(string)
	return out
}
