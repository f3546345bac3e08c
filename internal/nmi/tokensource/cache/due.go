package cache

import (
	"container/heap"
	"time"
)

// due orders entries by when they are to be looked at, the next one first. Use
// schedule and unschedule.
type due []*entry

func (d due) Len() int           { return len(d) }
func (d due) Less(i, j int) bool { return d[i].due.Before(d[j].due) }
func (d due) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i+1, j+1
}

// Push is part of heap.Interface.
func (d *due) Push(x any) {
	e, _ := x.(*entry)
	*d = append(*d, e)
	e.place = len(*d)
}

// Pop is part of heap.Interface.
func (d *due) Pop() any {
	last := len(*d) - 1
	e := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	e.place = 0
	return e
}

func (d *due) schedule(e *entry, at time.Time) {
	e.due = at
	if e.place == 0 {
		heap.Push(d, e)
		return
	}
	heap.Fix(d, e.place-1)
}

func (d *due) unschedule(e *entry) {
	if e.place > 0 {
		heap.Remove(d, e.place-1)
	}
}

// next takes out an entry that is due by now; nil if there is none.
func (d *due) next(now time.Time) *entry {
	if len(*d) == 0 || (*d)[0].due.After(now) {
		return nil
	}
	e, _ := heap.Pop(d).(*entry)
	return e
}
