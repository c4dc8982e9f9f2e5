// SPDX-License-Identifier: GPL-2.0-only
//! Attributes as lines of JSON: one object for each record, its values strings, numbers or booleans.

use super::open;
use crate::fail;
use crate::fail::{code, Done, Failure};
use serde_json::{Map, Value as Json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use vexfs_client::{AttrValue, Attrs};

/// Longest line that is read: attributes are at most 64 KiB, JSON may need six bytes for one.
const LINE_MAX: u64 = 1 << 20;

/// What a null in an object means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Null {
    /// The attribute is not there.
    Absent,
    /// The attribute is to be removed.
    Remove,
}

/// The attributes of an object; `what` names it in messages.
pub fn from_json(what: &str, object: Map<String, Json>, null: Null) -> Done<Attrs> {
    let mut out = Attrs::new();
    for (name, value) in object {
        if name.is_empty() || name.len() > 255 {
            fail!(code::USAGE, "{what}: the attribute name '{name:.40}' is not between 1 and 255 bytes long");
        }
        let value = match value {
            Json::Null if null == Null::Absent => continue,
            Json::Null => AttrValue::Remove,
            Json::Bool(b) => AttrValue::Bool(b),
            Json::String(s) => AttrValue::String(s),
            Json::Number(n) => match (n.as_i64(), n.as_f64()) {
                (Some(i), _) => AttrValue::I64(i),
                (None, Some(f)) if n.is_f64() && f.is_finite() => AttrValue::F64(f),
                _ => fail!(code::USAGE, "{what}: '{name}': {n} does not fit a 64-bit integer (write it with a decimal point or as a string)"),
            },
            Json::Array(_) | Json::Object(_) => fail!(
                code::USAGE,
                "{what}: '{name}' is a list or an object; attributes are strings, numbers and booleans"
            ),
        };
        out.insert(name, value);
    }
    Ok(out)
}

/// Attributes as members of a JSON object. Bytes that are no text (of a file's extended attribute) get
/// a member `NAME_bytes` in base64 besides.
pub fn to_json(attrs: &Attrs) -> Map<String, Json> {
    let mut out = Map::new();
    for (name, value) in attrs {
        let json = match value {
            AttrValue::String(s) => Json::from(s.as_str()),
            AttrValue::I64(i) => Json::from(*i),
            AttrValue::F64(f) => Json::from(*f),
            AttrValue::Bool(b) => Json::from(*b),
            AttrValue::Bytes(b) => {
                crate::show::put_name(&mut out, name, b);
                continue;
            }
            _ => Json::Null,
        };
        out.insert(name.clone(), json);
    }
    out
}

/// A .jsonl file, read line by line.
pub struct AttrLines {
    path: PathBuf,
    file: BufReader<File>,
    line: u64,
}

impl AttrLines {
    /// Opens the file.
    pub fn open(path: &Path) -> Done<AttrLines> {
        Ok(AttrLines { path: path.to_path_buf(), file: BufReader::new(open(path)?.0), line: 0 })
    }

    /// The next line as an object; `None` at the end. Empty lines are passed over.
    pub fn object(&mut self) -> Done<Option<Map<String, Json>>> {
        loop {
            let mut text = Vec::new();
            let n = self.file.by_ref().take(LINE_MAX).read_until(b'\n', &mut text);
            self.line += 1;
            match n.map_err(|e| Failure::io(self.path.display(), &e))? {
                0 => return Ok(None),
                n if n as u64 == LINE_MAX => fail!(code::USAGE, "{}: longer than {LINE_MAX} bytes", self.here()),
                _ if text.iter().all(u8::is_ascii_whitespace) => {}
                _ => match serde_json::from_slice(&text) {
                    Ok(object) => return Ok(Some(object)),
                    Err(e) => {
                        fail!(code::USAGE, "{}, column {}: not a JSON object ({})", self.here(), e.column(), reason(&e))
                    }
                },
            }
        }
    }

    /// The next record's attributes; `None` at the end.
    pub fn attrs(&mut self) -> Done<Option<Attrs>> {
        let Some(object) = self.object()? else { return Ok(None) };
        from_json(&self.here(), object, Null::Absent).map(Some)
    }

    /// File and line of what was read last, for messages.
    pub fn here(&self) -> String {
        format!("{}: line {}", self.path.display(), self.line)
    }
}

/// serde_json's message without the place, which is given in words of our own.
fn reason(e: &serde_json::Error) -> String {
    let text = e.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Vec<Attrs>, String> {
        let p = std::env::temp_dir().join(format!("vexfs-attrs-{}-{name}", std::process::id()));
        std::fs::write(&p, text).unwrap();
        let r = AttrLines::open(&p).and_then(|mut a| {
            let mut all = Vec::new();
            while let Some(x) = a.attrs()? {
                all.push(x);
            }
            Ok(all)
        });
        std::fs::remove_file(&p).unwrap();
        r.map_err(|e| e.text)
    }

    #[test]
    fn types_and_order() {
        let got = read("ok", "{\"b\": 1, \"a\": \"x\", \"n\": null}\n\n{\"f\": 1.0, \"t\": true}\n").unwrap();
        assert_eq!(got[0], Attrs::from([("a".into(), "x".into()), ("b".into(), 1.into())]));
        assert_eq!(got[1], Attrs::from([("f".into(), 1.0.into()), ("t".into(), true.into())]));
    }

    #[test]
    fn numbers_survive() {
        for v in [AttrValue::I64(i64::MIN), (-0.0).into(), 1e300.into(), 5e-324.into(), 3.0.into()] {
            let attrs = Attrs::from([("x".to_string(), v)]);
            let text = Json::from(to_json(&attrs)).to_string();
            let back = from_json("t", serde_json::from_str(&text).unwrap(), Null::Absent).unwrap();
            assert_eq!(format!("{back:?}"), format!("{attrs:?}"), "{text}");
        }
        let nulls = serde_json::from_str(r#"{"x":null}"#).unwrap();
        assert_eq!(from_json("t", nulls, Null::Remove).unwrap(), Attrs::from([("x".to_string(), AttrValue::Remove)]));
    }

    #[test]
    fn refusals() {
        for (name, text, say) in [
            ("list", "{}\n{\"a\": [1]}", "line 2: 'a' is a list"),
            ("syntax", "{\"a\": }", "line 1, column 7: not a JSON object"),
            ("wide", "{\"a\": 18446744073709551615}", "does not fit a 64-bit integer"),
            ("array", "[1]", "not a JSON object"),
            ("noname", "{\"\": 1}", "not between 1 and 255"),
        ] {
            let e = read(name, text).unwrap_err();
            assert!(e.contains(say), "{name}: {e}");
        }
    }
}
