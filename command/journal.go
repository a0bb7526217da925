package command

import (
	"github.com/aim-control/aimlock/internal/journal"
)

// journalDir is where the journal is: as -journal, AIMLOCK_JOURNAL or the
// config file say; "" if none of them does.
func (m *Meta) journalDir(flagValue string) string {
	return first(flagValue, m.Env("AIMLOCK_JOURNAL"), m.Config.Journal)
}

// maxProblems bounds how many bad lines of a journal are told of one by one.
const maxProblems = 10

// journalProblems tells of lines of a journal that cannot be read. Call done
// when all are told.
func (m *Meta) journalProblems() (tell func(*journal.Problem), done func()) {
	n := 0
	tell = func(p *journal.Problem) {
		if n++; n <= maxProblems {
			m.Notef("Warning: %s\n", p)
		}
	}
	done = func() {
		if n > maxProblems {
			m.Notef("Warning: %d more lines of the journal could not be read\n", n-maxProblems)
		}
	}
	return tell, done
}
