// Package securefile tells whether somebody else on this machine could change,
// replace or read a file. A program that runs plugins, takes its policies or
// reads its token from a path that another account can write to is run by that
// account.
//
// [Folder], [File] and [FileIn] follow a path from the root, through symlinks,
// and refuse the first step that an account other than root and the process's
// own can change. What passed stays what it is without being held open: all who
// could rename or link anything along the way are trusted, so that there is no
// race between the check and the use.
//
// [Writable] and [Readable] are for warnings, about files that are used all the
// same.
//
// POSIX ACLs are seen as far as they matter: where one gives a right to another
// account, the group bits of the mode show its mask. Capabilities, mounts and
// what root can do are not judged.
//
// It imports only the standard library.
package securefile
