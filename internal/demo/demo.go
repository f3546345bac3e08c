// Package demo is the program of the tutorials, written as any user of the Azure
// SDK would write it: it knows nothing of pod identity, nor where its credential
// comes from.
//
// It must not import anything of this project.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	"github.com/spf13/pflag"
)

// Options are what a user sets.
type Options struct {
	// VaultURL is the vault's address, such as https://NAME.vault.azure.net.
	VaultURL string
	// Secret is the name of the secret to read.
	Secret string
	// ClientID asks for one identity; empty for the pod's only one.
	ClientID string
	// Timeout bounds the wait for a token and the first reading of the secret.
	Timeout time.Duration
	// Retry is how long to wait between two attempts.
	Retry time.Duration
	// Repeat reads the secret again each time this has passed, until the end; zero
	// reads it once.
	Repeat time.Duration
	// ShowValue prints the secret itself. Only for a secret made for the demo.
	ShowValue bool
}

// ParseOptions reads the command line.
func ParseOptions(args []string, stderr io.Writer) (Options, error) {
	var o Options
	flags := pflag.NewFlagSet("demo", pflag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.VaultURL, "vault-url", "", "address of the key vault, such as https://NAME.vault.azure.net (required)")
	flags.StringVar(&o.Secret, "secret", "demo", "name of the secret to read")
	flags.StringVar(&o.ClientID, "client-id", "", "client ID of the identity to use (default: the pod's only one)")
	flags.DurationVar(&o.Timeout, "timeout", 3*time.Minute, "give up after this time")
	flags.DurationVar(&o.Retry, "retry", time.Second, "wait this long between two attempts")
	flags.DurationVar(&o.Repeat, "repeat", 0, "read the secret again each time this has passed; 0 reads it once")
	flags.BoolVar(&o.ShowValue, "show-value", false, "print the secret's value")
	if err := flags.Parse(args); err != nil {
		return Options{}, err
	}
	if o.VaultURL == "" {
		return Options{}, errors.New("--vault-url is required: the address of the key vault, such as https://NAME.vault.azure.net")
	}
	return o, nil
}

// Run waits until the pod gets a token, reads the secret, and says so on out. A
// permanent refusal ends it at once; anything else is tried until the timeout.
func Run(ctx context.Context, out io.Writer, o Options) error {
	credential, err := newCredential(o.ClientID)
	if err != nil {
		return fmt.Errorf("making the credential: %w", err)
	}
	client, err := azsecrets.NewClient(o.VaultURL, credential, nil)
	if err != nil {
		return fmt.Errorf("making the Key Vault client: %w", err)
	}
	first, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	start := time.Now()
	token, err := waitForToken(first, out, credential, o.Retry)
	if err != nil {
		return fmt.Errorf("getting a token: %w", err)
	}
	fmt.Fprintf(out, "token: got one after %s, valid until %s\n", time.Since(start).Round(time.Millisecond), token.ExpiresOn.UTC().Format(time.RFC3339))
	if err := read(first, out, client, o); err != nil || o.Repeat == 0 {
		return err
	}
	return repeat(ctx, out, client, o)
}

// repeat reads the secret until ctx ends. A failure is said and tried again.
func repeat(ctx context.Context, out io.Writer, client *azsecrets.Client, o Options) error {
	ticker := time.NewTicker(o.Repeat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if err := read(ctx, out, client, o); err != nil && ctx.Err() == nil {
				fmt.Fprintln(out, "failed:", err)
			}
		}
	}
}

func read(ctx context.Context, out io.Writer, client *azsecrets.Client, o Options) error {
	start := time.Now()
	secret, err := client.GetSecret(ctx, o.Secret, "", nil)
	if err != nil {
		return fmt.Errorf("reading secret %s: %w", o.Secret, err)
	}
	value := "(value not shown)"
	if o.ShowValue && secret.Value != nil {
		value = fmt.Sprintf("%q", *secret.Value)
	}
	fmt.Fprintf(out, "secret: read %s in %s: %s\n", o.Secret, time.Since(start).Round(time.Millisecond), value)
	return nil
}

func newCredential(clientID string) (azcore.TokenCredential, error) {
	options := &azidentity.ManagedIdentityCredentialOptions{}
	if clientID != "" {
		options.ID = azidentity.ClientID(clientID)
	}
	return azidentity.NewManagedIdentityCredential(options)
}

func waitForToken(ctx context.Context, out io.Writer, credential azcore.TokenCredential, retry time.Duration) (azcore.AccessToken, error) {
	request := policy.TokenRequestOptions{Scopes: []string{"https://vault.azure.net/.default"}}
	ticker := time.NewTicker(retry)
	defer ticker.Stop()
	for {
		token, err := credential.GetToken(ctx, request)
		if err == nil || permanent(err) {
			return token, err
		}
		fmt.Fprintf(out, "waiting: %v\n", err)
		select {
		case <-ctx.Done():
			return azcore.AccessToken{}, errors.Join(ctx.Err(), err)
		case <-ticker.C:
		}
	}
}

// permanent tells a refusal from a not-yet: the metadata service answers 400 and
// 403 to what no waiting mends.
func permanent(err error) bool {
	var failed *azidentity.AuthenticationFailedError
	if !errors.As(err, &failed) || failed.RawResponse == nil {
		return false
	}
	return failed.RawResponse.StatusCode == http.StatusBadRequest || failed.RawResponse.StatusCode == http.StatusForbidden
}
