// Package armclient is the one way to Azure Resource Manager (ARM): it reads the
// identities of a virtual machine or scale set and changes them, on the Azure SDK,
// and gives every failure one type.
//
// It must not decide what to change or whether to try again: callers plan, and
// tell failures apart with errors.As.
package armclient
