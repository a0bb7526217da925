package command

import (
	"io"
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// tellWords prints lines on stdout, folded where that is a terminal.
func (m *Meta) tellWords(lines string) { m.tell("%s", foldedFor(m.Stdout, lines)) }

// foldedFor is lines as they are written to w.
func foldedFor(w io.Writer, lines string) string {
	width, _ := Terminal(w)
	return folded(lines, width)
}

// folding folds what is written to a terminal in whole lines.
type folding struct{ to io.Writer }

func (f folding) Write(p []byte) (int, error) {
	if _, err := io.WriteString(f.to, foldedFor(f.to, string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

const (
	// labelWidth is the room for the label of a line of "lock status".
	labelWidth = 9
	// leastFolded is the least room that words are folded into.
	leastFolded = 20
)

// folded breaks lines that are wider than width at their blanks, and has each go on in
// line with what stands behind its label. What stands in backquotes is there to be
// copied: it is never broken, and where it alone is too wide the terminal breaks it. So it
// does with a line `ERROR: NAME: STATE`, which programs look for. At width 0 nothing is
// broken.
func folded(lines string, width int) string {
	if width <= 0 {
		return lines
	}
	var b strings.Builder
	for line := range strings.Lines(lines) {
		words, end := strings.CutSuffix(line, "\n")
		head, margin := labelOf([]rune(words), width)
		if ansi.StringWidth(words) <= width || width-margin < leastFolded || strings.HasPrefix(words, "ERROR: ") {
			b.WriteString(line)
			continue
		}
		b.WriteString(head)
		used, first := ansi.StringWidth(head), true
		for _, word := range unbroken(strings.TrimPrefix(words, head)) {
			n := ansi.StringWidth(word)
			switch {
			case first:
			case used+1+n <= width:
				b.WriteByte(' ')
				used++
			default:
				b.WriteString("\n" + strings.Repeat(" ", margin))
				used = margin
			}
			b.WriteString(word)
			used, first = used+n, false
		}
		if end {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// labelOf is what a line begins with, and how far its further lines stand from the
// margin: below what follows the label, which ends at the last gap in the first half of
// a line of width or takes all its room, or else a little further in than the line itself.
func labelOf(line []rune, width int) (head string, margin int) {
	indent := max(0, slices.IndexFunc(line, func(r rune) bool { return r != ' ' }))
	label := 0
	for i := indent; i+2 < min(len(line), width/2, width-leastFolded+1); i++ {
		if line[i] == ' ' && line[i+1] == ' ' && line[i+2] != ' ' {
			label = i + 2
		}
	}
	full := indent + labelWidth
	if label == 0 && indent > 0 && len(line) > full+1 && line[full] == ' ' && !slices.Contains(line[indent:full], ' ') {
		label = full + 1
	}
	if label > 0 {
		head = string(line[:label])
		return head, ansi.StringWidth(head)
	}
	if width-indent-2 < leastFolded {
		indent = min(indent, 2) // it stands too far in for words to be folded there
	}
	return string(line[:indent]), indent + 2
}

// unbroken are the words of a line, with what stands in backquotes as one.
func unbroken(line string) []string {
	var out []string
	open := false
	for word := range strings.FieldsSeq(line) {
		if open {
			out[len(out)-1] += " " + word
		} else {
			out = append(out, word)
		}
		open = open != (strings.Count(word, "`")%2 == 1)
	}
	return out
}
