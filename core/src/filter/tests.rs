// SPDX-License-Identifier: GPL-2.0-only
use super::attrs::{Builder, Value};
use super::*;
use std::collections::BTreeMap;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> usize {
        (self.next() % n) as usize
    }
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64)]
    }
}

#[derive(Clone, Debug, PartialEq)]
enum V {
    S(String),
    I(i64),
    F(f64),
    B(bool),
    /// An extended attribute.
    T(String),
}

impl V {
    fn view(&self) -> Value<'_> {
        match self {
            V::S(s) => Value::Str(s.as_bytes()),
            V::I(i) => Value::I64(*i),
            V::F(f) => Value::F64(f.to_bits()),
            V::B(b) => Value::Bool(*b),
            V::T(s) => Value::Text(s.as_bytes()),
        }
    }
}

type Record = BTreeMap<String, V>;

struct Model<'a>(&'a Record);
impl Source for Model<'_> {
    fn attr(&mut self, name: &[u8]) -> Step<Option<Value<'_>>> {
        Ok(self.0.get(std::str::from_utf8(name).unwrap()).map(V::view))
    }
}

#[derive(Clone, Debug)]
enum Ast {
    Test(String, &'static str, V),
    In(String, Vec<V>),
    NotIn(String, Vec<V>),
    Exists(String),
    Not(std::boxed::Box<Ast>),
    And(std::boxed::Box<Ast>, std::boxed::Box<Ast>),
    Or(std::boxed::Box<Ast>, std::boxed::Box<Ast>),
}

fn num(v: &V) -> Option<V> {
    match v {
        V::I(_) | V::F(_) => Some(v.clone()),
        V::T(s) if s.chars().all(|c| !c.is_alphabetic() || c == 'e') => {
            s.parse().ok().map(V::I).or_else(|| s.parse().ok().filter(|f: &f64| f.is_finite()).map(V::F))
        }
        _ => None,
    }
}

/// Order by the book: rational comparison through i128 and f64 where that is exact for the values used here.
fn model_order(a: &V, l: &V) -> Option<Ordering> {
    match (a, l) {
        (_, V::I(_) | V::F(_)) => match (num(a)?, l) {
            (V::I(a), V::I(b)) => Some(a.cmp(b)),
            (V::F(a), V::F(b)) => a.partial_cmp(b),
            (V::I(a), V::F(b)) => whole_cmp(a, *b),
            (V::F(a), V::I(b)) => whole_cmp(*b, a).map(Ordering::reverse),
            _ => unreachable!(),
        },
        (V::S(a) | V::T(a), V::S(b)) => Some(a.cmp(b)),
        (V::B(a), V::B(b)) => Some(a.cmp(b)),
        (V::T(a), V::B(b)) => a.parse::<bool>().ok().map(|a| a.cmp(b)),
        _ => None,
    }
}

fn whole_cmp(i: i64, f: f64) -> Option<Ordering> {
    let floor = f.floor();
    Some(i128::from(i).cmp(&(floor as i128)).then(if f > floor { Ordering::Less } else { Ordering::Equal }))
}

fn model_eval(a: &Ast, r: &Record) -> bool {
    match a {
        Ast::Test(n, op, l) => match r.get(n).and_then(|v| model_order(v, l)) {
            None => false,
            Some(o) => match *op {
                "=" | "==" => o.is_eq(),
                "!=" => o.is_ne(),
                "<" => o.is_lt(),
                "<=" => o.is_le(),
                ">" => o.is_gt(),
                _ => o.is_ge(),
            },
        },
        Ast::In(n, ls) => r.get(n).is_some_and(|v| ls.iter().any(|l| model_order(v, l) == Some(Ordering::Equal))),
        Ast::NotIn(n, ls) => r.get(n).is_some_and(|v| {
            let orders: Vec<Ordering> = ls.iter().filter_map(|l| model_order(v, l)).collect();
            !orders.is_empty() && !orders.contains(&Ordering::Equal)
        }),
        Ast::Exists(n) => r.contains_key(n),
        Ast::Not(a) => !model_eval(a, r),
        Ast::And(a, b) => model_eval(a, r) && model_eval(b, r),
        Ast::Or(a, b) => model_eval(a, r) || model_eval(b, r),
    }
}

const NAMES: [&str; 8] = ["a", "b", "size", "x.y:z-1", "and", "with space", "tick`s", "größe"];

fn value(r: &mut Rng, attr: bool) -> V {
    let n = if attr { 5 } else { 4 };
    let s =
        r.pick(&["", "1", "1.0", "1e0", "libs", "Libs", "true", "false", "5 ", "-3", "it's \"\\\n\t", "größe", "nan"]);
    match r.below(n) {
        0 => V::S(s.to_string()),
        1 => V::I(r.pick(&[0, 1, -1, 5, -3, i64::MAX, i64::MIN, 1 << 53, (1 << 53) + 1])),
        2 => V::F(r.pick(&[0.0, -0.0, 1.0, 0.5, -3.0, 5.5, 9007199254740992.0, 9223372036854775808.0, 1e300, -1e300])),
        3 => V::B(r.below(2) == 0),
        _ => V::T(s.to_string()),
    }
}

fn ast(r: &mut Rng, depth: usize) -> Ast {
    let name = r.pick(&NAMES).to_string();
    match r.below(if depth == 0 { 4 } else { 9 }) {
        0 => Ast::Exists(name),
        1 => {
            let values = (0..1 + r.below(4)).map(|_| value(r, false)).collect();
            if r.below(2) == 0 {
                Ast::In(name, values)
            } else {
                Ast::NotIn(name, values)
            }
        }
        2 | 3 => {
            let v = value(r, false);
            let op = if matches!(v, V::B(_)) {
                r.pick(&["=", "!="])
            } else {
                r.pick(&["=", "==", "!=", "<", "<=", ">", ">="])
            };
            Ast::Test(name, op, v)
        }
        4 => Ast::Not(ast(r, depth - 1).into()),
        5 | 6 => Ast::And(ast(r, depth - 1).into(), ast(r, depth - 1).into()),
        _ => Ast::Or(ast(r, depth - 1).into(), ast(r, depth - 1).into()),
    }
}

fn word(r: &mut Rng, w: &str) -> String {
    match r.below(3) {
        0 => w.to_uppercase(),
        _ => w.to_string(),
    }
}

fn name_text(r: &mut Rng, n: &str) -> String {
    let plain = !n.contains([' ', '`']) && n != "and";
    if plain && r.below(2) == 0 {
        n.to_string()
    } else {
        format!("`{}`", n.replace('`', "``"))
    }
}

fn value_text(r: &mut Rng, v: &V) -> String {
    match v {
        V::S(s) => {
            let q = r.pick(&['"', '\'']);
            let mut t = String::from(q);
            for c in s.chars() {
                match c {
                    '\\' => t += "\\\\",
                    '\n' if r.below(2) == 0 => t += "\\n",
                    '\t' => t += "\\x09",
                    c if c == q => {
                        t.push('\\');
                        t.push(c);
                    }
                    c => t.push(c),
                }
            }
            t.push(q);
            t
        }
        V::I(i) => i.to_string(),
        V::F(f) => format!("{f:e}"),
        V::B(b) => word(r, if *b { "true" } else { "false" }),
        V::T(_) => unreachable!(),
    }
}

/// Writes a tree with no more parentheses than needed, or with more.
fn print(r: &mut Rng, a: &Ast, strength: usize) -> String {
    let (own, s) = match a {
        Ast::Test(n, op, v) => {
            let gap = r.pick(&["", " ", "\n\t"]);
            (4, format!("{}{gap}{op}{gap}{}", name_text(r, n), value_text(r, v)))
        }
        Ast::In(n, vs) => {
            let list: Vec<String> = vs.iter().map(|v| value_text(r, v)).collect();
            (4, format!("{} {}({})", name_text(r, n), word(r, "in"), list.join(r.pick(&[",", " , "]))))
        }
        Ast::NotIn(n, vs) => {
            let list: Vec<String> = vs.iter().map(|v| value_text(r, v)).collect();
            let (not, of) = (word(r, "not"), word(r, "in"));
            (4, format!("{} {not} {of}({})", name_text(r, n), list.join(r.pick(&[",", " , "]))))
        }
        Ast::Exists(n) => (4, format!("{}({})", word(r, "exists"), name_text(r, n))),
        Ast::Not(a) => (3, format!("{} {}", word(r, "not"), print(r, a, 3))),
        Ast::And(a, b) => (2, format!("{} {} {}", print(r, a, 2), word(r, "and"), print(r, b, 2))),
        Ast::Or(a, b) => (1, format!("{} {} {}", print(r, a, 1), word(r, "or"), print(r, b, 1))),
    };
    if own < strength || r.below(6) == 0 {
        format!("({s})")
    } else {
        s
    }
}

fn record(r: &mut Rng) -> Record {
    let mut rec = Record::new();
    for n in NAMES {
        if r.below(3) > 0 {
            rec.insert(n.to_string(), value(r, true));
        }
    }
    rec
}

fn encode(rec: &Record, r: &mut Rng) -> Vec<u8> {
    let mut b = Builder::new();
    let mut all: Vec<_> = rec.iter().collect();
    for i in (1..all.len()).rev() {
        all.swap(i, r.below(i as u64 + 1));
    }
    for (n, v) in all {
        b.add(n.as_bytes(), v.view()).unwrap();
    }
    b.finish().unwrap()
}

#[test]
fn agrees_with_a_naive_evaluator() {
    let mut r = Rng(42);
    let mut hits = 0;
    for _ in 0..20_000 {
        let depth = r.below(6);
        let tree = ast(&mut r, depth);
        let text = print(&mut r, &tree, 0);
        let filter = Filter::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        for _ in 0..8 {
            let rec = record(&mut r);
            let want = model_eval(&tree, &rec);
            hits += usize::from(want);
            assert_eq!(filter.eval(&mut Model(&rec)), Ok(want), "{text} {rec:?}");
            // Encoded and decoded a record means the same, but that text has become strings.
            if !rec.values().any(|v| matches!(v, V::T(_))) {
                let bytes = encode(&rec, &mut r);
                assert_eq!(attrs::validate(&bytes, false), Ok(()));
                assert_eq!(filter.eval(&mut Encoded(&bytes)), Ok(want));
            }
        }
    }
    assert!(hits > 30_000 && hits < 130_000, "{hits}");
}

#[test]
fn a_miss_stops_it_and_what_is_not_needed_is_not_asked_for() {
    struct Cold<'a>(&'a str, usize);
    impl Source for Cold<'_> {
        fn attr(&mut self, name: &[u8]) -> Step<Option<Value<'_>>> {
            self.1 += 1;
            if name == self.0.as_bytes() {
                return Err(crate::Stop::Need(crate::Need::Collection(7)));
            }
            Ok(Some(Value::I64(1)))
        }
    }
    let f = Filter::parse(b"a = 1 and b = 2 or c = 3").unwrap();
    assert_eq!(f.eval(&mut Cold("c", 0)), Err(crate::Stop::Need(crate::Need::Collection(7))));
    assert_eq!(f.eval(&mut Cold("z", 0)), Ok(false));
    let mut s = Cold("b", 0);
    let f = Filter::parse(b"a = 2 and b = 2").unwrap();
    assert_eq!(f.eval(&mut s), Ok(false));
    assert_eq!(s.1, 1);
    let f = Filter::parse(b"a = 1 or (b = 2 and b = 3)").unwrap();
    let mut s = Cold("b", 0);
    assert_eq!(f.eval(&mut s), Ok(true));
    assert_eq!(s.1, 1);
    assert_eq!(f.names().collect::<Vec<_>>(), [b"a", b"b"]);
}

#[test]
fn mistakes_are_shown_where_they_are() {
    for (text, pos, msg) in [
        ("", 0, "the filter ends too early: expected the name of an attribute"),
        ("a <", 3, "expected a value after '<'"),
        ("a < b", 4, "expected a value; strings go in quotes"),
        ("a", 1, "expected a comparison (= != < <= > >= in) after the name"),
        ("a = 1 b = 2", 6, "expected 'and', 'or' or the end of the filter"),
        ("(a = 1", 0, "there is no ')' for this '('"),
        ("a = 1 and (b = 2 or (c = 3)", 10, "there is no ')' for this '('"),
        ("a = 1)", 5, "there is no '(' for this ')'"),
        ("a = 'x", 4, "a string does not end"),
        ("a = 'x\\q'", 6, "unknown escape: \\\\ \\\" \\' \\n \\r \\t \\xHH are known"),
        ("a = '\\x4'", 5, "\\x needs two hexadecimal digits"),
        ("a in 1", 5, "expected '(' after 'in'"),
        ("a in (", 6, "expected a value after '('"),
        ("a in (1,", 8, "expected a value after ','"),
        ("a in (1 2)", 8, "expected ',' or ')' in the list"),
        ("exists a", 7, "expected '(' after 'exists'"),
        ("exists(a", 8, "expected ')' after the name"),
        ("'a' = 1", 0, "expected the name of an attribute (names are not quoted, or in backticks)"),
        ("a = 1e400", 4, "a number is too large"),
        ("a = 12ab", 4, "a number is followed by something that is not part of it"),
        ("a = -", 4, "this is not a number"),
        ("a = nan", 4, "expected a value; strings go in quotes"),
        ("a < true", 4, "true and false compare with '=' and '!=' only"),
        ("a = 1 && b = 1", 6, "unknown character '&': write 'and'"),
        ("a ! 1", 2, "'!' stands for nothing alone: write 'not' or '!='"),
        ("a not 1", 6, "expected 'in' after 'not'"),
        ("a not in 1", 9, "expected '(' after 'in'"),
        ("a not in ()", 10, "expected a value after '('"),
        ("`` = 1", 0, "a name is empty"),
        ("`a = 1", 0, "a name that begins with a backtick does not end with one"),
        ("a = 1 and", 9, "the filter ends too early: expected the name of an attribute"),
        ("a # 1", 2, "unknown character"),
    ] {
        let e = Filter::parse(text.as_bytes()).expect_err(text);
        assert_eq!((e.pos, e.msg, e.error), (pos, msg, Error::Invalid), "{text}");
    }
    let f = Failure::from(Filter::parse(b"a <").unwrap_err());
    assert_eq!((f.message(), f.position), ("filter, byte 3: expected a value after '<'", 3));
}

#[test]
fn bounds() {
    let deep = "(".repeat(4096) + "a=1" + &")".repeat(4096);
    assert!(Filter::parse(deep.as_bytes()).is_ok());
    let deep = "(".repeat(4097) + "a=1" + &")".repeat(4097);
    assert_eq!(Filter::parse(deep.as_bytes()).unwrap_err().error, Error::TooBig);
    let nots = "not ".repeat(4095) + "a=1";
    let rec = Record::from([("a".to_string(), V::I(1))]);
    assert_eq!(Filter::parse(nots.as_bytes()).unwrap().eval(&mut Model(&rec)), Ok(false));
    let wide = ["a=1"; 2049].join(" or ");
    assert_eq!(Filter::parse(wide.as_bytes()).unwrap_err().error, Error::TooBig);
    assert!(Filter::parse(["a=2"; 2048].join(" or ").as_bytes()).is_ok());
    let long = format!("a = '{}'", "x".repeat(65_530));
    assert_eq!(Filter::parse(long.as_bytes()).map(|_| ()).map_err(|e| e.error), Ok(()));
    assert_eq!(Filter::parse(format!("{long} ").as_bytes()).unwrap_err().error, Error::TooBig);
    let name = "n".repeat(256);
    assert_eq!(Filter::parse(format!("{name} = 1").as_bytes()).unwrap_err().msg, "a name has more than 255 bytes");
    assert_eq!(Filter::parse(format!("`{name}` = 1").as_bytes()).unwrap_err().msg, "a name has more than 255 bytes");
}

#[test]
fn any_bytes_are_parsed_or_refused() {
    let mut r = Rng(9);
    let words: [&[u8]; 24] = [
        b"a",
        b"`b`",
        b"and",
        b"or",
        b"not",
        b"in",
        b"exists",
        b"(",
        b")",
        b"(",
        b")",
        b",",
        b"=",
        b"<",
        b">=",
        b"!=",
        b"1",
        b"-2.5e3",
        b"'s'",
        b"\"\\x41\"",
        b"true",
        b" ",
        b"\xff",
        b"\\",
    ];
    let mut parsed = 0;
    for _ in 0..300_000 {
        let n = r.below(12);
        let mut text = Vec::new();
        for _ in 0..n {
            text.extend_from_slice(r.pick(&words));
            if r.below(3) == 0 {
                text.push(b' ');
            }
        }
        match Filter::parse(&text) {
            Ok(f) => {
                parsed += 1;
                f.eval(&mut Encoded(&[])).unwrap();
            }
            Err(e) => assert!(e.pos <= text.len() && e.error == Error::Invalid),
        }
    }
    assert!(parsed > 100, "{parsed}");
}

#[test]
fn attributes_behave_like_a_map() {
    let mut r = Rng(77);
    for _ in 0..5000 {
        let a = record(&mut r);
        let b = record(&mut r);
        let ea = encode(&a, &mut r);
        let same = encode(&a, &mut r);
        assert_eq!(ea, same, "the order of adding does not matter");
        let got: Vec<_> = attrs::iter(&ea).map(|(n, _)| n.to_vec()).collect();
        assert_eq!(got, a.keys().map(|k| k.as_bytes().to_vec()).collect::<Vec<_>>());
        for n in NAMES.iter().chain(&["zzz", "", "0"]) {
            let text_is_str = |v: &V| if let V::T(s) = v { V::S(s.clone()) } else { v.clone() };
            let want = a.get(*n).map(text_is_str);
            assert_eq!(attrs::lookup(&ea, n.as_bytes()), want.as_ref().map(V::view));
        }
        // A patch with removals.
        let mut patch = encode(&b, &mut r);
        let mut merged = a.clone();
        merged.extend(b.clone());
        let gone = r.pick(&NAMES);
        if !b.contains_key(gone) {
            let mut with = Record::new();
            with.insert(gone.to_string(), V::S(String::new()));
            let mut entry = encode(&with, &mut r);
            entry[1] = 0;
            patch = attrs_insert(&patch, &entry, gone.as_bytes());
            merged.remove(gone);
            assert_eq!(attrs::validate(&patch, false), Err(attrs::AttrsError::Type));
        }
        assert_eq!(attrs::validate(&patch, true), Ok(()));
        assert_eq!(attrs::merge(&ea, &patch).unwrap(), encode(&merged, &mut r));
    }
}

/// `entry` put where it belongs in `bytes`.
fn attrs_insert(bytes: &[u8], entry: &[u8], name: &[u8]) -> Vec<u8> {
    let mut at = 0;
    while at < bytes.len() {
        let n = bytes[at] as usize;
        if &bytes[at + 4..at + 4 + n] > name {
            break;
        }
        at += 4 + n + u16::from_le_bytes([bytes[at + 2], bytes[at + 3]]) as usize;
    }
    [&bytes[..at], entry, &bytes[at..]].concat()
}

#[test]
fn wrong_attributes_are_refused() {
    use attrs::AttrsError as E;
    let e = |name: &[u8], ty: u8, v: &[u8]| {
        let mut b = std::vec![name.len() as u8, ty, v.len() as u8, (v.len() >> 8) as u8];
        b.extend_from_slice(name);
        b.extend_from_slice(v);
        b
    };
    let ok = e(b"a", 2, &[0; 8]);
    let check = |b: &[u8]| attrs::validate(b, false);
    assert_eq!(check(&[]), Ok(()));
    assert_eq!(check(&ok), Ok(()));
    assert_eq!(check(&ok[..ok.len() - 1]), Err(E::Cut));
    assert_eq!(check(&[&ok[..], &[0]].concat()), Err(E::Cut));
    assert_eq!(check(&[&ok[..], &ok[..]].concat()), Err(E::Order));
    assert_eq!(check(&[e(b"b", 4, &[1]), ok.clone()].concat()), Err(E::Order));
    assert_eq!(check(&e(b"", 4, &[1])), Err(E::Name));
    assert_eq!(check(&e(b"\xff", 4, &[1])), Err(E::Name));
    assert_eq!(check(&e(b"a", 0, &[])), Err(E::Type));
    assert_eq!(check(&e(b"a", 5, &[])), Err(E::Type));
    assert_eq!(check(&e(b"a", 4, &[2])), Err(E::Value));
    assert_eq!(check(&e(b"a", 4, &[])), Err(E::Value));
    assert_eq!(check(&e(b"a", 2, &[0; 7])), Err(E::Value));
    assert_eq!(check(&e(b"a", 3, &[0; 9])), Err(E::Value));
    assert_eq!(check(&e(b"a", 1, &[0xff])), Err(E::Utf8));
    assert_eq!(check(&e(b"a", 3, &f64::NAN.to_le_bytes())), Err(E::NotFinite));
    assert_eq!(check(&e(b"a", 3, &f64::NEG_INFINITY.to_le_bytes())), Err(E::NotFinite));
    assert_eq!(attrs::validate(&e(b"a", 0, &[1]), true), Err(E::Value));
    assert_eq!(check(&e(b"a", 1, &[b'x'; 65531])), Ok(()));
    assert_eq!(check(&e(b"a", 1, &[b'x'; 65532])), Err(E::TooBig));
    // Any bytes: no panic, and what is valid survives a merge with nothing.
    let mut r = Rng(1);
    for _ in 0..200_000 {
        let b: Vec<u8> = (0..r.below(24)).map(|_| r.pick(&[0, 1, 2, 3, 4, 8, b'a', b'b', 0xff])).collect();
        attrs::lookup(&b, b"a");
        if check(&b).is_ok() {
            assert_eq!(attrs::merge(&b, &[]).unwrap(), b);
            assert_eq!(attrs::merge(&[], &b).unwrap(), b);
        }
    }
}
