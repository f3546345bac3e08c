package redirect

// End does to a bound redirect what the end of its process does: its socket is
// closed.
func (n *NFTables) End() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.disown()
}
