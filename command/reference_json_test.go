package command

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// typed is this package as the compiler sees it, with all that it imports.
type typed struct {
	t       *testing.T
	fset    *token.FileSet
	imports types.Importer
	pkg     *types.Package
	info    *types.Info
	// sources are other packages that were read whole, with what they keep to
	// themselves.
	sources map[string]*types.Package
	// comments of fields, by file and line.
	comments map[string]map[int]string
	// words are for fields without a comment; used are those that were needed.
	words map[string]string
	used  map[string]bool
}

// loadTypes reads this package; the others come from what the compiler exported.
func loadTypes(t *testing.T) *typed {
	t.Helper()
	args := []string{"list", "-export", "-deps", "-f", "{{.ImportPath}}\t{{.Export}}"}
	// With the race detector, what it was built with is built already.
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, ".")...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), "\t")
		exports[path] = file
	}
	ty := &typed{t: t, fset: token.NewFileSet(), sources: map[string]*types.Package{}, comments: map[string]map[int]string{}, words: fieldWords(), used: map[string]bool{}}
	ty.imports = importer.ForCompiler(ty.fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})
	ty.pkg, ty.info = ty.check(".")
	return ty
}

// check reads the package of a folder.
func (ty *typed) check(dir string) (*types.Package, *types.Info) {
	list, err := build.ImportDir(dir, 0)
	if err != nil {
		ty.t.Fatal(err)
	}
	var files []*ast.File
	for _, name := range list.GoFiles {
		path, err := filepath.Abs(filepath.Join(dir, name))
		if err != nil {
			ty.t.Fatal(err)
		}
		f, err := parser.ParseFile(ty.fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			ty.t.Fatal(err)
		}
		files = append(files, f)
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	conf := types.Config{Importer: ty.imports}
	pkg, err := conf.Check(dir, ty.fset, files, info)
	if err != nil {
		ty.t.Fatal(err)
	}
	return pkg, info
}

// printed are the types of all that is printed as JSON, by their names: of the
// arguments of the functions that print.
func (ty *typed) printed() map[string]types.Type {
	out := map[string]types.Type{}
	for expr := range ty.info.Types {
		call, ok := expr.(*ast.CallExpr)
		if !ok {
			continue
		}
		var name string
		switch fun := call.Fun.(type) {
		case *ast.SelectorExpr:
			name = fun.Sel.Name
		case *ast.Ident:
			name = fun.Name
		}
		if !slices.Contains([]string{"PrintJSON", "writeJSON", "printLine"}, name) || len(call.Args) == 0 {
			continue
		}
		arg := ty.info.Types[call.Args[len(call.Args)-1]].Type
		if types.IsInterface(arg) {
			continue // one of these functions that calls another
		}
		out[ty.name(arg)] = arg
	}
	return out
}

// name of a type as readers see it: pointers away, and the packages' last names.
func (ty *typed) name(t types.Type) string {
	if p, ok := types.Unalias(t).(*types.Pointer); ok {
		return ty.name(p.Elem())
	}
	return types.TypeString(t, func(p *types.Package) string {
		if p == ty.pkg {
			return ""
		}
		return p.Name()
	})
}

// named finds a type of a record by the name of its package and its own.
func (ty *typed) named(name string) types.Type {
	pkg, typ, _ := strings.Cut(name, ".")
	if ty.sources[pkg] == nil {
		ty.sources[pkg], _ = ty.check(map[string]string{
			"records": "../internal/records", "orchestrator": "../orchestrator", "runner": "../orchestrator/runner",
		}[pkg])
	}
	o := ty.sources[pkg].Scope().Lookup(typ)
	if o == nil {
		ty.t.Errorf("there is no type %s", name)
		return nil
	}
	return o.Type()
}

// comment is that of the field at a place.
func (ty *typed) comment(o types.Object) string {
	pos := ty.fset.Position(o.Pos())
	// With -trimpath that is a path of the module, and no folder's.
	if rest, ok := strings.CutPrefix(pos.Filename, "github.com/aim-control/aimlock/"); ok {
		pos.Filename = filepath.Join("..", rest)
	}
	lines, ok := ty.comments[pos.Filename]
	if !ok {
		lines = map[int]string{}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, pos.Filename, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			ty.t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			field, ok := n.(*ast.Field)
			if !ok {
				return true
			}
			text := field.Doc.Text()
			if text == "" {
				text = field.Comment.Text()
			}
			lines[fset.Position(field.Pos()).Line] = oneLine(text)
			for _, n := range field.Names {
				lines[fset.Position(n.Pos()).Line] = oneLine(text)
			}
			return true
		})
		ty.comments[pos.Filename] = lines
	}
	return lines[pos.Line]
}

// jsonField is one of an object.
type jsonField struct {
	name, kind, doc string
	// of are the types that stand in it.
	of []types.Type
}

// documented is a field with a comment, which may be about those after it too.
type documented struct {
	*types.Var
	field string
}

// fields are those of a struct, as encoding/json writes them.
func (ty *typed) fields(s *types.Struct) []jsonField {
	var out []jsonField
	var last documented
	for i := range s.NumFields() {
		v := s.Field(i)
		tag := reflect.StructTag(s.Tag(i)).Get("json")
		name, opts, _ := strings.Cut(tag, ",")
		if name == "-" {
			continue
		}
		if v.Embedded() && name == "" {
			t := types.Unalias(v.Type())
			if p, ok := t.(*types.Pointer); ok {
				t = p.Elem()
			}
			if inner, ok := t.Underlying().(*types.Struct); ok {
				out = append(out, ty.fields(inner)...)
				continue
			}
		}
		if !v.Exported() {
			continue
		}
		if name == "" {
			name = v.Name()
		}
		kind, of := ty.kind(v.Type())
		doc := ty.comment(v)
		if rest, ok := strings.CutPrefix(doc, v.Name()+" is "); ok {
			doc = capital(rest)
		} else if rest, ok := strings.CutPrefix(doc, v.Name()); ok && rest != "" && strings.ContainsAny(rest[:1], " :,") {
			doc = code(name) + rest
		}
		if doc == "" && last.Var != nil && regexp.MustCompile(`\b`+v.Name()+`\b`).MatchString(ty.comment(last.Var)) {
			doc = "See " + code(last.field) + "."
		} else if doc != "" {
			last = documented{v, name}
		}
		if strings.Contains(opts, "omitempty") || strings.Contains(opts, "omitzero") {
			kind += ", left out if empty"
		}
		out = append(out, jsonField{name: name, kind: kind, doc: doc, of: of})
	}
	return out
}

// kind is a type in JSON's words, and the objects that it is made of.
func (ty *typed) kind(t types.Type) (string, []types.Type) {
	t = types.Unalias(t)
	if p, ok := t.(*types.Pointer); ok {
		k, of := ty.kind(p.Elem())
		return k + " or null", of
	}
	if n, ok := t.(*types.Named); ok {
		switch n.String() {
		case "time.Time":
			return "time", nil
		case "encoding/json.RawMessage":
			return "any JSON", nil
		}
		// A type that writes itself is what it writes.
		for m := range types.NewMethodSet(types.NewPointer(n)).Methods() {
			switch m.Obj().Name() {
			case "MarshalJSON", "MarshalJSONTo":
				if s, ok := ownJSON()[ty.name(t)]; ok {
					return s, nil
				}
				ty.t.Errorf("%s writes its own JSON: say in ownJSON what that is", ty.name(t))
			case "MarshalText":
				return "string", nil
			}
		}
		if n.String() == "time.Duration" {
			return "number of nanoseconds", nil
		}
	}
	switch u := t.Underlying().(type) {
	case *types.Basic:
		switch {
		case u.Info()&types.IsBoolean != 0:
			return "bool", nil
		case u.Info()&types.IsNumeric != 0:
			return "number", nil
		default:
			return "string", nil
		}
	case *types.Slice:
		if b, ok := u.Elem().Underlying().(*types.Basic); ok && b.Kind() == types.Byte {
			return "string in base64", nil
		}
		k, of := ty.kind(u.Elem())
		return "list of " + k, of
	case *types.Array:
		k, of := ty.kind(u.Elem())
		return fmt.Sprintf("list of %d of %s", u.Len(), k), of
	case *types.Map:
		k, of := ty.kind(u.Elem())
		return "object of " + k, of
	case *types.Interface:
		return "any JSON", nil
	case *types.Struct:
		if _, ok := t.(*types.Named); ok {
			return "[" + ty.name(t) + "](#" + anchor(ty.name(t)) + ")", []types.Type{t}
		}
		var names []string
		for _, f := range ty.fields(u) {
			names = append(names, f.name)
		}
		return "object of " + strings.Join(names, ", "), nil
	}
	ty.t.Errorf("no JSON is known of %s", t)
	return "", nil
}

func (w *refWriter) json() {
	ty := loadTypes(w.t)
	w.printf("Durations are numbers of seconds unless it says otherwise, times RFC 3339. A field may be added in any version and none is taken away\n" +
		"without a word in the [changelog](../../CHANGELOG.md): readers pass over what they do not know. `or null` may also be left out.\n\n" +
		"- [What commands print](#what-commands-print)\n- [Records](#records) in Consul\n- [Objects](#objects) that stand in them\n")
	done, queue := map[string]bool{}, []types.Type{}
	w.printf("\n## What commands print\n\n")
	w.table("command with -json", "prints")
	printed := ty.printed()
	described := jsonOutputs()
	var used []string
	for _, c := range allCommands() {
		outs, ok := described[c.name]
		if takes := c.Groups&groupJSON != 0; takes != ok {
			w.t.Errorf("aimlock %s takes -json: %v; what it prints is described: %v", c.name, takes, ok)
		}
		if !ok {
			continue
		}
		var cells []string
		for _, o := range outs {
			t, found := printed[o.typ]
			if !found {
				w.t.Errorf("aimlock %s: nothing prints a %s", c.name, o.typ)
				continue
			}
			used = append(used, o.typ)
			k, of := ty.kind(t)
			queue = append(queue, of...)
			if o.what != "" {
				k = o.what + ": " + k
			}
			cells = append(cells, k)
		}
		w.row(code("aimlock "+c.name), strings.Join(cells, "; "))
	}
	for name := range printed {
		if !slices.Contains(used, name) {
			w.t.Errorf("%s is printed as JSON and is not described", name)
		}
	}
	w.printf("\n## Records\n\nWhere they stand: [keys](keys.md). Each has the `version` that it was written with.\n")
	for _, name := range ty.records() {
		if t := ty.named(name); t != nil && !done[name] {
			done[name] = true
			queue = append(queue, ty.object(w, "###", t)...)
		}
	}
	w.printf("\n## Objects\n")
	objects := map[string]string{}
	for len(queue) > 0 {
		t := queue[0]
		queue = queue[1:]
		if name := ty.name(t); !done[name] {
			done[name] = true
			var one refWriter
			one.t = w.t
			queue = append(queue, ty.object(&one, "###", t)...)
			objects[name] = one.String()
		}
	}
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		w.WriteString(objects[name])
	}
	for id := range ty.words {
		if !ty.used[id] {
			w.t.Errorf("no field without a comment is %s", id)
		}
	}
}

// records are the names of the types of all records: those that a key holds, and
// what else package records writes.
func (ty *typed) records() []string {
	var out []string
	for _, text := range keyRecords() {
		out = append(out, recordName.FindAllString(text, -1)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// word is what is said of a field without a comment.
func (ty *typed) word(object, name string) string {
	for _, id := range []string{object + "." + name, name} {
		if text, ok := ty.words[id]; ok {
			ty.used[id] = true
			return text
		}
	}
	ty.t.Errorf("%s has a field %q without a comment: give it one, or a line in fieldTexts", object, name)
	return ""
}

// object writes the fields of an object, and returns what stands in them.
func (ty *typed) object(w *refWriter, level string, t types.Type) []types.Type {
	s, ok := t.Underlying().(*types.Struct)
	if !ok {
		ty.t.Errorf("%s is no object", t)
		return nil
	}
	w.printf("\n%s %s\n\n", level, ty.name(t))
	w.table("field", "type", "meaning")
	var of []types.Type
	for _, f := range ty.fields(s) {
		if f.doc == "" {
			f.doc = ty.word(ty.name(t), f.name)
		}
		w.row(code(f.name), f.kind, f.doc)
		of = append(of, f.of...)
	}
	return of
}

// jsonOutput is one value that a command prints.
type jsonOutput struct{ typ, what string }

// jsonOutputs says which types each command with -json prints.
func jsonOutputs() map[string][]jsonOutput {
	rollout := []jsonOutput{{"rolloutView", ""}}
	return map[string][]jsonOutput{
		"acl":              {{"[]roleView", "without a role"}, {"roleView", "with one"}},
		"agent apply":      {{"records.Actual", "one config"}, {"[]*records.Actual", "several"}},
		"agent status":     {{"[]agent.Status", ""}},
		"doctor":           {{"[]doctor.Finding", ""}},
		"init":             {{"initView", ""}},
		"lock break":       {{"breakView", ""}},
		"lock explain":     {{"explainView", ""}, {"filelock.Report", "with `-file`"}},
		"lock list":        {{"[]*locksmith.Status", ""}, {"[]fullStatus", "with `-verbose`"}},
		"lock silence":     {{"silenceReport", ""}},
		"lock status":      {{"fullStatus", ""}},
		"lock watch":       {{"watchLine", "a line for each change"}},
		"locksmith":        {{"sweepView", "with `-once`"}},
		"plugin info":      {{"pluginView", ""}},
		"plugin list":      {{"[]pluginView", ""}},
		"plugin verify":    {{"[]verifyView", ""}},
		"policy apply":     {{"policyApplyReport", ""}},
		"policy check":     {{"policyCheckReport", ""}},
		"policy replay":    {{"replay.Report", ""}},
		"policy resume":    {{"suspendReport", ""}},
		"policy show":      {{"policyShowReport", ""}, {"policyActiveReport", "with `-active`"}, {"records.PolicyVersion", "with `-serial`"}, {"[]*records.PolicyVersion", "with `-history`"}},
		"policy suspend":   {{"suspendReport", ""}},
		"policy test":      {{"[]policyTestView", ""}},
		"recover":          {{"locksmith.Recovery", ""}},
		"rollout abort":    rollout,
		"rollout list":     {{"[]rolloutView", ""}},
		"rollout pause":    rollout,
		"rollout plan":     {{"planView", ""}},
		"rollout promote":  rollout,
		"rollout report":   {{"storyView", ""}},
		"rollout resume":   rollout,
		"rollout rollback": rollout,
		"rollout skip":     rollout,
		"rollout start":    rollout,
		"rollout status":   rollout,
		"rollout tick":     {{"rolloutView", ""}, {"busyView", "while another copy is at work"}},
		"rollout watch":    {{"rolloutView", "a line for each change"}},
		"version":          {{"version.Info", ""}},
	}
}

// ownJSON says what a type writes that writes itself.
func ownJSON() map[string]string {
	return map[string]string{
		"orchestrator.Counts":   "object of numbers: applied, failed, unreachable, skipped, rolled_back, superseded, pending",
		"orchestrator.IndexSet": "string: the places of nodes in the plan, as ranges such as `0-4,7`, or as `bitmap:` and a bitmap in base64 where that is shorter",
	}
}
