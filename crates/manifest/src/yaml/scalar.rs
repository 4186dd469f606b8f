//! What a plain scalar means.

use super::Value;

/// Resolves an unquoted scalar.
pub(super) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Value::Bool(false),
        _ => number(text).unwrap_or_else(|| Value::Text(text.to_owned())),
    }
}

fn number(text: &str) -> Option<Value> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        b'0'..=b'9' | b'.' => (false, text),
        _ => return None,
    };
    integer(negative, digits).or_else(|| float(text, digits))
}

fn integer(negative: bool, digits: &str) -> Option<Value> {
    if digits.starts_with('_') {
        return None;
    }
    let digits: String = digits.chars().filter(|c| *c != '_').collect();
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x', ..] => (16, &digits[2..]),
        [b'0', b'o', ..] => (8, &digits[2..]),
        [b'0', b'b', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, &digits[..]),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    match (negative, i64::try_from(magnitude)) {
        (false, Ok(n)) => Some(Value::Int(n)),
        (false, Err(_)) => Some(Value::UInt(magnitude)),
        (true, Ok(n)) => Some(Value::Int(-n)),
        (true, Err(_)) if magnitude == i64::MIN.unsigned_abs() => Some(Value::Int(i64::MIN)),
        (true, Err(_)) => None,
    }
}

fn float(text: &str, digits: &str) -> Option<Value> {
    match digits {
        ".inf" | ".Inf" | ".INF" => {
            return Some(Value::Float(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY }));
        }
        ".nan" | ".NaN" | ".NAN" => return Some(Value::Float(f64::NAN)),
        _ => {}
    }
    let shape = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-');
    let has_digit = digits.starts_with(|c: char| c.is_ascii_digit())
        || digits.strip_prefix('.').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if !has_digit || !digits.chars().all(shape) {
        return None;
    }
    text.parse().ok().map(Value::Float)
}

/// Whether a text can be written without quotes and is read as the same text again, here and by `kubectl`.
pub(crate) fn plain_text(s: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() && !c.is_control();
    let inner = |c: char| {
        word(c)
            || matches!(c, '-' | '_' | '.' | '/' | ':' | '@' | '+' | '=' | ' ' | '(' | ')' | ',' | ';' | '~')
    };
    let dubious = ["y", "Y", "n", "N", "<<", "="];
    s.len() <= 1000
        && s.starts_with(|c: char| word(c) || matches!(c, '/' | '_' | '.'))
        && !s.ends_with([' ', ':'])
        && s.chars().all(inner)
        && !s.contains(": ")
        && !dubious.contains(&s)
        && !matches!(s.as_bytes(), [b'0'..=b'9' | b'.', ..] if s.contains(['_', ':']))
        && plain(s) == Value::Text(s.to_owned())
}
