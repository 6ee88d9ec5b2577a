// Package tap writes the Test Anything Protocol: the few calls that the validation programs make.
package tap

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// T counts and prints results. Writer defaults to standard output.
type T struct {
	Writer   io.Writer
	nextTest *int
	mark     string
}

// New returns a counter that starts at test 1.
func New() *T { number := 1; return &T{nextTest: &number} }

// Todo returns the same counter; its results are marked as expected to fail.
func (t *T) Todo() *T { return &T{Writer: t.Writer, nextTest: t.nextTest, mark: " # TODO"} }

func (t *T) out() io.Writer {
	if t.Writer == nil {
		return os.Stdout
	}
	return t.Writer
}

// Header prints the version and, for a count above 0, the plan.
func (t *T) Header(count int) {
	fmt.Fprintln(t.out(), "TAP version 13")
	if count > 0 {
		fmt.Fprintf(t.out(), "1..%d\n", count)
	}
}

// Ok prints one result.
func (t *T) Ok(passed bool, description string) {
	word := "ok"
	if !passed {
		word = "not ok"
	}
	fmt.Fprintf(t.out(), "%s %d - %s%s\n", word, *t.nextTest, description, t.mark)
	*t.nextTest++
}

// Pass and Fail are Ok with a fixed result.
func (t *T) Pass(description string) { t.Ok(true, description) }

// Fail prints a result that is not ok.
func (t *T) Fail(description string) { t.Ok(false, description) }

// Skip prints `count` results that say they were skipped.
func (t *T) Skip(count int, description string) {
	for i := 0; i < count; i++ {
		fmt.Fprintf(t.out(), "ok %d # SKIP %s\n", *t.nextTest, description)
		*t.nextTest++
	}
}

// AutoPlan prints the plan at the end.
func (t *T) AutoPlan() { fmt.Fprintf(t.out(), "1..%d\n", *t.nextTest-1) }

// Diagnostic prints comment lines.
func (t *T) Diagnostic(message string) {
	fmt.Fprintf(t.out(), "# %s\n", strings.ReplaceAll(strings.TrimRight(message, "\n"), "\n", "\n# "))
}

// Diagnosticf is Diagnostic with a format.
func (t *T) Diagnosticf(format string, values ...interface{}) {
	t.Diagnostic(fmt.Sprintf(format, values...))
}

// YAML prints a value between the marks of a YAML block (JSON is YAML).
func (t *T) YAML(value interface{}) error {
	text, err := json.MarshalIndent(value, "  ", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintf(t.out(), "  ---\n  %s\n  ...\n", text)
	return nil
}
