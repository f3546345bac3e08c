// Package armclient is the one way to Azure Resource Manager (ARM): it reads a
// scale set's identities and changes them, on the Azure SDK, and gives every
// failure one type.
//
// It must not decide what to change or whether to try again: callers plan, and
// tell failures apart with errors.As.
package armclient
