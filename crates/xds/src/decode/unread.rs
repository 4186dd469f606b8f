//! Finds what a protobuf reader would skip inside a policy's rules.
//!
//! Protobuf skips fields it does not know. In a match, an unknown field is a condition that a newer control plane
//! added: skipped, the match would hold more often than was meant. So the message is walked once more by its raw
//! field numbers, and the places that hold unknown ones are noted.

use std::collections::BTreeSet;

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// `Authorization.rules`, `Rule.clauses`, `Clause.matches`.
const RULES: u32 = 5;
const CLAUSES: u32 = 1;
const MATCHES: u32 = 2;
/// The fields of a match that hold messages, whose own fields are all known up to this number.
const STRING_FIELDS: [u32; 4] = [1, 2, 3, 4];
const ADDRESS_FIELDS: [u32; 4] = [5, 6, 7, 8];
const PORT_FIELDS: [u32; 2] = [9, 10];
const ACCOUNT_FIELDS: [u32; 2] = [11, 12];
const EXTENSIONS: u32 = 13;
/// The highest number in `StringMatch`; `Address` and `ServiceAccountMatch` end at 2.
const LAST_OF_STRING: u32 = 4;
const LAST_OF_PAIR: u32 = 2;

/// The places, counted from 0, that hold something unknown.
#[derive(Debug, Default)]
pub(super) struct Unread {
    rules: BTreeSet<usize>,
    clauses: BTreeSet<(usize, usize)>,
    matches: BTreeSet<(usize, usize, usize)>,
}

impl Unread {
    /// Walks an encoded `Authorization`. Where the bytes end the walk early, the message's own reader says why.
    pub(super) fn find(authorization: &[u8]) -> Self {
        let mut unread = Self::default();
        for (at, rule) in children(authorization, RULES).enumerate() {
            if foreign(rule, &[CLAUSES]) {
                unread.rules.insert(at);
            }
            for (c, clause) in children(rule, CLAUSES).enumerate() {
                if foreign(clause, &[MATCHES]) {
                    unread.clauses.insert((at, c));
                }
                for (m, bytes) in children(clause, MATCHES).enumerate() {
                    if match_is_foreign(bytes) {
                        unread.matches.insert((at, c, m));
                    }
                }
            }
        }
        unread
    }

    pub(super) fn in_rule(&self, rule: usize) -> bool {
        self.rules.contains(&rule)
    }

    pub(super) fn in_clause(&self, rule: usize, clause: usize) -> bool {
        self.clauses.contains(&(rule, clause))
    }

    pub(super) fn in_match(&self, rule: usize, clause: usize, m: usize) -> bool {
        self.matches.contains(&(rule, clause, m))
    }
}

fn match_is_foreign(bytes: &[u8]) -> bool {
    Fields(bytes).any(|(number, value)| {
        if STRING_FIELDS.contains(&number) {
            Fields(value).any(|(n, _)| n > LAST_OF_STRING)
        } else if ADDRESS_FIELDS.contains(&number) || ACCOUNT_FIELDS.contains(&number) {
            Fields(value).any(|(n, _)| n > LAST_OF_PAIR)
        } else {
            !PORT_FIELDS.contains(&number) && number != EXTENSIONS
        }
    })
}

fn foreign(bytes: &[u8], known: &[u32]) -> bool {
    Fields(bytes).any(|(number, _)| !known.contains(&number))
}

fn children(bytes: &[u8], field: u32) -> impl Iterator<Item = &[u8]> {
    Fields(bytes).filter(move |(number, _)| *number == field).map(|(_, value)| value)
}

/// The fields of one message: number, and the bytes where the field is length-delimited (nothing otherwise).
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = &mut self.0;
        let field = (|| {
            let (number, wire_type) = decode_key(rest).ok()?;
            if wire_type != WireType::LengthDelimited {
                skip_field(wire_type, number, rest, DecodeContext::default()).ok()?;
                return Some((number, &[][..]));
            }
            let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
            let (value, after) = rest.split_at_checked(length)?;
            *rest = after;
            Some((number, value))
        })();
        if field.is_none() {
            self.0 = &[];
        }
        field
    }
}
