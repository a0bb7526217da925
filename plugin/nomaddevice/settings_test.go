package nomaddevice

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/msgpack"

	"github.com/aim-control/aimlock/plugin/nomaddevice/nomadpb"
)

// encode is what Nomad does with a plugin's block.
func encode(t testing.TB, settings map[string]cty.Value) []byte {
	t.Helper()
	v := cty.ObjectVal(settings)
	b, err := msgpack.Marshal(v, v.Type())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func list(all ...string) cty.Value {
	var out []cty.Value
	for _, s := range all {
		out = append(out, cty.StringVal(s))
	}
	return cty.ListVal(out)
}

// TestSchemaDefaults: what Nomad fills in for what is left out is what this
// program takes for it.
func TestSchemaDefaults(t *testing.T) {
	filled := map[string]cty.Value{}
	for name, spec := range schema().GetObject().GetAttributes() {
		attr := spec.GetAttr()
		if d := spec.GetDefault(); d != nil {
			attr = d.GetPrimary().GetAttr()
			expr, diags := hclsyntax.ParseExpression([]byte(d.GetDefault().GetLiteral().GetValue()), name, hcl.InitialPos)
			if diags.HasErrors() {
				t.Fatal(diags)
			}
			v, diags := expr.Value(nil)
			if diags.HasErrors() {
				t.Fatal(diags)
			}
			filled[name] = v
		}
		if name != "consul" && (attr.GetName() != name || kinds[attr.GetType()] == cty.NilType || attr.GetRequired()) {
			t.Errorf("%s is %v", name, attr)
		}
	}
	got, err := decode(encode(t, filled))
	if err != nil || !reflect.DeepEqual(got, Defaults()) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, Defaults())
	}
}

func TestSettings(t *testing.T) {
	got, err := decode(encode(t, map[string]cty.Value{
		"state_dir": cty.StringVal("/s"), "node": cty.StringVal("n1"), "root": cty.NullVal(cty.String), "prefix": cty.StringVal("p/"),
		"configs": list("b", "a", "b"), "slots": cty.NumberIntVal(4), "mount": cty.StringVal("folder"), "mount_private": cty.True,
		"require_agent": cty.False, "on_unknown": cty.StringVal("healthy"), "lock_interval": cty.StringVal("1m"), "policies": list("/p"),
		"consul": cty.ObjectVal(map[string]cty.Value{"address": cty.StringVal("c:1"), "token_file": cty.StringVal("/t")}),
	}))
	want := Settings{
		StateDir: "/s", Node: "n1", Prefix: "p/", Configs: []string{"b", "a"}, Slots: 4, Mount: MountFolder, MountPrivate: true, OnUnknown: UnknownHealthy,
		LockInterval: time.Minute, Policies: []string{"/p"}, ConsulAddress: "c:1", ConsulTokenFile: "/t",
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
	if got, err := decode(nil); err != nil || !reflect.DeepEqual(got, Defaults()) {
		t.Errorf("no settings: %+v, %v", got, err)
	}
	if got, err := decode(encode(t, map[string]cty.Value{"consul": cty.NullVal(cty.EmptyObject)})); err != nil || !reflect.DeepEqual(got, Defaults()) {
		t.Errorf("no block: %+v, %v", got, err)
	}
}

func TestSettingsRefused(t *testing.T) {
	for want, settings := range map[string]map[string]cty.Value{
		"slots is 1.5: a whole number from 1 to 1024": {"slots": cty.NumberFloatVal(1.5)},
		"slots is 1025: ":    {"slots": cty.NumberIntVal(1025)},
		"slots is no number": {"slots": cty.StringVal("many")},
		`lock_interval is "1ms": a duration from 1s to 5m0s`:                 {"lock_interval": cty.StringVal("1ms")},
		`mount is "all": one of file, folder, none`:                          {"mount": cty.StringVal("all")},
		"set mount_private = true as well":                                   {"mount": cty.StringVal("folder")},
		`on_unknown is "maybe": one of unhealthy, healthy`:                   {"on_unknown": cty.StringVal("maybe")},
		`root is "r": name the folder by its whole path`:                     {"root": cty.StringVal("r")},
		`configs config name "a/b" is not allowed`:                           {"configs": list("a/b")},
		"configs holds a null":                                               {"configs": cty.ListVal([]cty.Value{cty.NullVal(cty.String)})},
		`policies holds "p.hcl": name files`:                                 {"policies": list("p.hcl")},
		"consul is no block of settings":                                     {"consul": cty.StringVal("x")},
		"consul.addr is no setting of aimlock: they are address, token_file": {"consul": cty.ObjectVal(map[string]cty.Value{"addr": cty.StringVal("x")})},
		"colour is no setting of aimlock: they are configs, lock_interval, ": {"colour": cty.StringVal("x")},
		// All that is wrong is told at once.
		"slots is 0: a whole number from 1 to 1024; state_dir is": {"slots": cty.NumberIntVal(0), "state_dir": cty.StringVal("s")},
	} {
		if got, err := decode(encode(t, settings)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %+v, %v", want, got, err)
		}
	}
}

// FuzzSettings: whatever comes, settings that pass are within their bounds.
// Bytes that announce more than there is, or are nested as deep as they may be, cost
// what they are long.
func TestSettingsThatAnnounceMuch(t *testing.T) {
	t.Parallel()
	for name, b := range map[string][]byte{
		"a list of thousands of millions": {0xdd, 0xff, 0xff, 0xff, 0xff, 0x01},
		"a map of thousands of millions":  {0xdf, 0xff, 0xff, 0xff, 0xff, 0xa1, 'a', 0x01},
		"a text of thousands of millions": {0xdb, 0xff, 0xff, 0xff, 0xff, 'a'},
		"a number that is none":           {0x81, 0xa5, 's', 'l', 'o', 't', 's', 0xca, 0x7f, 0xff, '0', '0'},
		"lists in lists":                  append(bytes.Repeat([]byte{0x91}, maxEncoded-1), 0xc0),
		"lists in lists without an end":   bytes.Repeat([]byte{0x91}, maxEncoded),
		"maps in maps":                    append(bytes.Repeat([]byte{0x81, 0xa1, 'a'}, maxEncoded/3), 0xc0),
		"too long":                        append([]byte{0xdc, 0xff, 0xff}, make([]byte, maxEncoded)...),
	} {
		if s, err := decode(b); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func FuzzSettings(f *testing.F) {
	f.Add(encode(f, map[string]cty.Value{"slots": cty.NumberIntVal(4), "configs": list("a"), "consul": cty.ObjectVal(map[string]cty.Value{"address": cty.StringVal("c")})}))
	f.Add([]byte{0xc1})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decode(b)
		if err == nil && (s.Slots < 1 || s.Slots > maxSlots || s.LockInterval < minLockInterval || s.LockInterval > maxLockInterval || s.StateDir == "") {
			t.Errorf("%x: %+v", b, s)
		}
	})
}

// TestNames holds the wire to the names and numbers that Nomad has.
func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		nomadpb.BasePlugin_SetConfig_FullMethodName:                                                 "/hashicorp.nomad.plugins.base.proto.BasePlugin/SetConfig",
		nomadpb.BasePlugin_PluginInfo_FullMethodName:                                                "/hashicorp.nomad.plugins.base.proto.BasePlugin/PluginInfo",
		nomadpb.BasePlugin_ConfigSchema_FullMethodName:                                              "/hashicorp.nomad.plugins.base.proto.BasePlugin/ConfigSchema",
		nomadpb.DevicePlugin_Fingerprint_FullMethodName:                                             "/hashicorp.nomad.plugins.device.DevicePlugin/Fingerprint",
		nomadpb.DevicePlugin_Reserve_FullMethodName:                                                 "/hashicorp.nomad.plugins.device.DevicePlugin/Reserve",
		nomadpb.DevicePlugin_Stats_FullMethodName:                                                   "/hashicorp.nomad.plugins.device.DevicePlugin/Stats",
		string((&nomadpb.Spec{}).ProtoReflect().Descriptor().FullName()):                            "hashicorp.nomad.plugins.shared.hclspec.Spec",
		string((&nomadpb.Attribute{}).ProtoReflect().Descriptor().FullName()):                       "hashicorp.nomad.plugins.shared.structs.Attribute",
		string((&nomadpb.FingerprintResponse{}).ProtoReflect().Descriptor().ParentFile().Package()): "hashicorp.nomad.plugins.device",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
