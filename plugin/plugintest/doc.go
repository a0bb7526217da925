// Package plugintest is the conformance suite for plugins of aimlock. Authors run
// it in their own repository, over the program that they ship:
//
//	func TestMain(m *testing.M) { plugintest.Main(m, myplugin.Plugin()) }
//
//	func TestConformance(t *testing.T) {
//		plugintest.Run(t, &plugintest.Subject{
//			Cases: []plugintest.Case{{
//				Name: "healthy", Kind: plugin.KindGate,
//				Config:  `{"url": "http://127.0.0.1:8080/healthy"}`,
//				Refused: []string{`{"url": "not an address"}`},
//				Verdict: plugin.Pass,
//			}},
//		})
//	}
//
// With [Main] the test binary serves the plugin itself, so that Go's race detector
// and coverage see it. Subject.Command runs any other program: a plugin that is not
// written in Go is tested in the same way.
//
// Everything goes over a real process and a real socket, and what is judged is what
// aimlock would see: a fact of a wrong type, for instance, is an unknown fact, and
// the case that expected a value fails.
//
// [Check] is the suite without testing: it returns what it found. The names of its
// checks are stable.
package plugintest
