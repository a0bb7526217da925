// Program protogen writes the Go code of this repository's .proto files. It needs
// no protoc: protocompile reads them, and protoc-gen-go and protoc-gen-go-grpc, at
// the versions of its own go.mod, write the code. So the tools stay out of the
// module that people import.
//
//	go -C internal/protogen run . [-check] plugin/proto/plugin.proto ...
//
// Paths are those below the top of the repository. With -check nothing is
// written: code that is not current is an error.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// module stands before the path of each file, so that no other module's file of
// the same name meets it in protobuf's registry.
const module = "github.com/aim-control/aimlock"

// top is the top of the repository, from this program's folder.
const top = "../.."

func main() {
	check := flag.Bool("check", false, "write nothing, and fail if the code is not current")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *check, flag.Args())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "protogen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, check bool, paths []string) error {
	if len(paths) == 0 {
		return errors.New("name the .proto files, from the top of the repository")
	}
	for _, p := range paths {
		request, err := compile(ctx, p)
		if err != nil {
			return err
		}
		for _, tool := range []string{"protoc-gen-go", "protoc-gen-go-grpc"} {
			if err := generate(ctx, tool, request, check); err != nil {
				return fmt.Errorf("%s of %s: %w", tool, p, err)
			}
		}
	}
	return nil
}

func compile(ctx context.Context, path string) ([]byte, error) {
	c := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			Accessor: func(name string) (io.ReadCloser, error) {
				return os.Open(filepath.Join(top, strings.TrimPrefix(name, module+"/")))
			},
		}),
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	name := module + "/" + filepath.ToSlash(path)
	files, err := c.Compile(ctx, name)
	if err != nil {
		return nil, err
	}
	request := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{name},
		Parameter:      proto.String("module=" + module),
	}
	seen := map[string]bool{}
	var add func(name string, f *descriptorpb.FileDescriptorProto) error
	add = func(name string, f *descriptorpb.FileDescriptorProto) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		for _, dep := range f.GetDependency() {
			imported, err := c.Compile(ctx, dep)
			if err != nil {
				return err
			}
			if err := add(dep, protodesc.ToFileDescriptorProto(imported[0])); err != nil {
				return err
			}
		}
		request.ProtoFile = append(request.ProtoFile, f)
		return nil
	}
	if err := add(name, protodesc.ToFileDescriptorProto(files[0])); err != nil {
		return nil, err
	}
	return proto.Marshal(request)
}

func generate(ctx context.Context, tool string, request []byte, check bool) error {
	cmd := exec.CommandContext(ctx, "go", "tool", tool)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(request), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(out, &response); err != nil {
		return err
	}
	if response.Error != nil {
		return errors.New(response.GetError())
	}
	for _, f := range response.GetFile() {
		path, content := filepath.Join(top, f.GetName()), []byte(f.GetContent())
		if !check {
			if err := os.WriteFile(path, content, 0o644); err != nil {
				return err
			}
			continue
		}
		if old, err := os.ReadFile(path); err != nil || !bytes.Equal(old, content) {
			return fmt.Errorf("%s is not current: run make proto", f.GetName())
		}
	}
	return nil
}
