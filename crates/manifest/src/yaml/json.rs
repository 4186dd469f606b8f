//! JSON (RFC 8259) to the same tree.
//!
//! YAML is nearly a superset, but its readers stumble over surrogate pairs and long keys, which JSON writers emit.

use std::collections::HashMap;

use super::{Entry, Fault, MAX_DEPTH, Node, Value};
use crate::problem::Position;

pub(super) fn read(text: &str) -> Result<Vec<Node>, Fault> {
    let mut reader = Reader { rest: text, line: 1, column: 1 };
    let mut documents = Vec::new();
    reader.space();
    // `kubectl get -o json | jq -c .items[]` makes one document after the other.
    while !reader.rest.is_empty() {
        documents.push(reader.value(0)?);
        reader.space();
        if reader.rest.starts_with(|c| c != '{') {
            return Err(reader.fault("no JSON: more text after the object"));
        }
    }
    Ok(documents)
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    column: usize,
}

impl Reader<'_> {
    fn at(&self) -> Position {
        Position::new(self.line, self.column)
    }

    fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::new(self.at(), message)
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(c)
    }

    fn space(&mut self) {
        while self.rest.starts_with([' ', '\t', '\n', '\r']) {
            self.next();
        }
    }

    fn eat(&mut self, c: char) -> bool {
        let there = self.rest.starts_with(c);
        if there {
            self.next();
        }
        there
    }

    fn expect(&mut self, c: char) -> Result<(), Fault> {
        self.space();
        if self.eat(c) { Ok(()) } else { Err(self.fault(format!("no JSON: expected `{c}`"))) }
    }

    fn value(&mut self, depth: usize) -> Result<Node, Fault> {
        self.space();
        let at = self.at();
        if depth > MAX_DEPTH {
            return Err(self.fault(format!("nested more than {MAX_DEPTH} deep")));
        }
        let value = match self.rest.chars().next() {
            Some('{') => self.object(depth)?,
            Some('[') => self.array(depth)?,
            Some('"') => Value::Text(self.string()?),
            Some('-' | '0'..='9') => self.number()?,
            _ => self.word()?,
        };
        Ok(Node { at, value })
    }

    fn object(&mut self, depth: usize) -> Result<Value, Fault> {
        self.expect('{')?;
        let mut entries = Vec::new();
        let mut seen: HashMap<String, Position> = HashMap::new();
        self.space();
        if self.eat('}') {
            return Ok(Value::Mapping(entries));
        }
        loop {
            self.space();
            let at = self.at();
            if !self.rest.starts_with('"') {
                return Err(self.fault("no JSON: expected a key in double quotes"));
            }
            let key = self.string()?;
            if let Some(first) = seen.insert(key.clone(), at) {
                return Err(Fault::twice(&key, at, first));
            }
            self.expect(':')?;
            let value = self.value(depth + 1)?;
            entries.push(Entry { at, key, value });
            self.space();
            if !self.eat(',') {
                self.expect('}')?;
                return Ok(Value::Mapping(entries));
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, Fault> {
        self.expect('[')?;
        let mut items = Vec::new();
        self.space();
        if self.eat(']') {
            return Ok(Value::Sequence(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if !self.eat(',') {
                self.expect(']')?;
                return Ok(Value::Sequence(items));
            }
        }
    }

    fn word(&mut self) -> Result<Value, Fault> {
        for (word, value) in
            [("true", Value::Bool(true)), ("false", Value::Bool(false)), ("null", Value::Null)]
        {
            if self.rest.starts_with(word) {
                word.chars().for_each(|_| {
                    self.next();
                });
                return Ok(value);
            }
        }
        Err(self.fault("no JSON: expected a value"))
    }

    fn number(&mut self) -> Result<Value, Fault> {
        let shape = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
        let length = self.rest.find(|c| !shape(c)).unwrap_or(self.rest.len());
        let text = &self.rest[..length];
        let whole = text.strip_prefix('-').unwrap_or(text);
        if (whole.len() > 1 && whole.starts_with('0') && !whole[1..].starts_with(['.', 'e', 'E']))
            || !whole.starts_with(|c: char| c.is_ascii_digit())
            || whole.ends_with('.')
        {
            return Err(self.fault("no JSON: no number"));
        }
        let value = if let Ok(n) = text.parse() {
            Value::Int(n)
        } else if let Ok(n) = text.parse() {
            Value::UInt(n)
        } else if let Ok(n) = text.parse() {
            Value::Float(n)
        } else {
            return Err(self.fault("no JSON: no number"));
        };
        self.rest = &self.rest[length..];
        self.column += length;
        Ok(value)
    }

    fn string(&mut self) -> Result<String, Fault> {
        self.expect('"')?;
        let mut text = String::new();
        loop {
            match self.next() {
                None => return Err(self.fault("no JSON: the text has no end")),
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escape()?),
                Some(c) if c < ' ' => {
                    return Err(self.fault("no JSON: a control character in a text"));
                }
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Fault> {
        let c = self.next();
        Ok(match c {
            Some(c @ ('"' | '\\' | '/')) => c,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let high = self.hex()?;
                let code = if (0xD800..0xDC00).contains(&high) {
                    let low = if self.eat('\\') && self.eat('u') { self.hex()? } else { 0 };
                    if !(0xDC00..0xE000).contains(&low) {
                        return Err(self.fault("no JSON: half of a surrogate pair"));
                    }
                    0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)
                } else {
                    high
                };
                char::from_u32(code).ok_or_else(|| self.fault("no JSON: no character"))?
            }
            _ => return Err(self.fault("no JSON: unknown escape")),
        })
    }

    fn hex(&mut self) -> Result<u32, Fault> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.next().and_then(|c| c.to_digit(16));
            code =
                code * 16 + digit.ok_or_else(|| self.fault("no JSON: expected four hexadecimal digits"))?;
        }
        Ok(code)
    }
}
