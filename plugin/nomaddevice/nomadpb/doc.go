// Package nomadpb is the wire format of Nomad's device plugins: the names and
// numbers of its messages, services and fields, which are the same in all
// versions since 0.9. The Go code is written from the .proto files by make
// proto.
//
// The messages have Nomad's full names, so that a program cannot hold both this
// package and Nomad's own.
package nomadpb
