//! The serde side: a node as a `Deserializer`.

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

use super::error::Stop;
use super::fields;
use super::{Notes, Path};
use crate::suggest::did_you_mean;
use crate::yaml::{Entry, Node, Value};

/// A node about to be read.
#[derive(Clone, Copy)]
pub(super) struct NodeReader<'n, 'p> {
    pub(super) node: &'n Node,
    pub(super) path: Path<'p>,
    pub(super) notes: &'p Notes,
}

impl<'n> NodeReader<'n, '_> {
    /// Puts the node's place on an error that has none, and its way before the message.
    fn claim<T>(&self, result: Result<T, Stop>) -> Result<T, Stop> {
        result.map_err(|stop| match stop.node {
            Some(_) => stop,
            None => Stop {
                message: format!("{}: {}", self.path.subject(), stop.message),
                node: Some((std::ptr::from_ref(self.node).addr(), self.node.at)),
                ..stop
            },
        })
    }

    fn found(&self) -> Unexpected<'n> {
        match &self.node.value {
            Value::Null => Unexpected::Unit,
            Value::Bool(b) => Unexpected::Bool(*b),
            Value::Int(n) => Unexpected::Signed(*n),
            Value::UInt(n) => Unexpected::Unsigned(*n),
            Value::Float(n) => Unexpected::Float(*n),
            Value::Text(s) => Unexpected::Str(s),
            Value::Sequence(_) => Unexpected::Seq,
            Value::Mapping(_) => Unexpected::Map,
        }
    }

    fn wrong<T>(&self, expected: &str) -> Result<T, Stop> {
        self.claim(Err(Stop::invalid_type(self.found(), &expected)))
    }

    fn number<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Int(n) => self.claim(visitor.visit_i64(*n)),
            Value::UInt(n) => self.claim(visitor.visit_u64(*n)),
            // 1e3 and 80.0 are whole numbers to a JSON reader.
            Value::Float(n) if n.fract() == 0.0 && n.abs() < 9e15 => self.claim(visitor.visit_i64(*n as i64)),
            Value::Text(s) if s.parse::<i64>().is_ok() => {
                self.claim(Err(
                    Stop::invalid_type(self.found(), &"a whole number").remedy("take the quotes away")
                ))
            }
            _ => self.wrong("a whole number"),
        }
    }

    fn text<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Text(s) => self.claim(visitor.visit_str(s)),
            Value::Bool(_) | Value::Int(_) | Value::UInt(_) | Value::Float(_) => {
                self.claim(Err(Stop::invalid_type(self.found(), &"a text").remedy("put it in quotes")))
            }
            _ => self.wrong("a text"),
        }
    }

    fn list<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Stop> {
        let Value::Sequence(items) = &self.node.value else { return self.wrong("a list") };
        let access = Items { items: items.iter().enumerate(), path: &self.path, notes: self.notes };
        self.claim(visitor.visit_seq(access))
    }

    fn mapping<V: Visitor<'n>>(self, visitor: V) -> Result<V::Value, Stop> {
        let Value::Mapping(entries) = &self.node.value else { return self.wrong("a mapping") };
        let access = Entries {
            entries: entries.iter(),
            value: None,
            nulls: true,
            path: &self.path,
            notes: self.notes,
        };
        self.claim(visitor.visit_map(access))
    }

    fn structure<V: Visitor<'n>>(
        self,
        name: &str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        let Value::Mapping(entries) = &self.node.value else { return self.wrong("a mapping") };
        for entry in entries {
            let key = entry.key.as_str();
            if known.contains(&key) || fields::is_later(name, key) {
                continue;
            }
            let remedy = fields::belongs(name, key)
                .map(str::to_owned)
                .or_else(|| did_you_mean(key, known.iter().copied()));
            self.notes.add(entry.at, format!("{} has no field `{key}`", self.path.subject()), remedy);
        }
        let access = Entries {
            entries: entries.iter(),
            value: None,
            nulls: false,
            path: &self.path,
            notes: self.notes,
        };
        self.claim(visitor.visit_map(access))
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
            self.number(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for NodeReader<'de, '_> {
    type Error = Stop;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Null => self.claim(visitor.visit_unit()),
            Value::Bool(b) => self.claim(visitor.visit_bool(*b)),
            Value::Int(n) => self.claim(visitor.visit_i64(*n)),
            Value::UInt(n) => self.claim(visitor.visit_u64(*n)),
            Value::Float(n) => self.claim(visitor.visit_f64(*n)),
            Value::Text(s) => self.claim(visitor.visit_str(s)),
            Value::Sequence(_) => self.list(visitor),
            Value::Mapping(_) => self.mapping(visitor),
        }
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Float(n) => self.claim(visitor.visit_f64(*n)),
            Value::Int(n) => self.claim(visitor.visit_i64(*n)),
            Value::UInt(n) => self.claim(visitor.visit_u64(*n)),
            _ => self.wrong("a number"),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Bool(b) => self.claim(visitor.visit_bool(*b)),
            _ => self.wrong("true or false"),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.text(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.text(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.text(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.text(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.text(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Null => self.claim(visitor.visit_none()),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_any(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Stop> {
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.claim(visitor.visit_newtype_struct(self))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.list(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Stop> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.list(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.mapping(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        self.structure(name, fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stop> {
        match &self.node.value {
            Value::Text(word) => self.claim(visitor.visit_enum(Word(word))),
            _ => self.wrong(&format!("one of {}", variants.join(", "))),
        }
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        self.text(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_unit()
    }
}

/// Walks a list around what is left out.
struct Items<'n, 'p> {
    items: std::iter::Enumerate<std::slice::Iter<'n, Node>>,
    path: &'p Path<'p>,
    notes: &'p Notes,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Stop;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stop> {
        let notes = self.notes;
        let Some((index, node)) = self.items.find(|(_, node)| !notes.leaves_out(node)) else {
            return Ok(None);
        };
        let reader = NodeReader { node, path: Path::Index(self.path, index), notes };
        reader.claim(seed.deserialize(reader)).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

/// Walks a mapping around what is left out; in a structure, also around nulls, which mean a field that is not set.
struct Entries<'n, 'p> {
    entries: std::slice::Iter<'n, Entry>,
    value: Option<&'n Entry>,
    nulls: bool,
    path: &'p Path<'p>,
    notes: &'p Notes,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = Stop;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Stop> {
        let (notes, nulls) = (self.notes, self.nulls);
        let next =
            self.entries.find(|e| !notes.leaves_out(&e.value) && (nulls || e.value.value != Value::Null));
        let Some(entry) = next else { return Ok(None) };
        self.value = Some(entry);
        let reader = NodeReader { node: &entry.value, path: Path::Field(self.path, &entry.key), notes };
        reader.claim(seed.deserialize(Key(&entry.key))).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Stop> {
        let Some(entry) = self.value.take() else { return Err(Stop::new("a value without its key")) };
        let reader =
            NodeReader { node: &entry.value, path: Path::Field(self.path, &entry.key), notes: self.notes };
        reader.claim(seed.deserialize(reader))
    }
}

/// A key: a text, or the number that it spells.
struct Key<'n>(&'n str);

macro_rules! number_keys {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
            match self.0.parse::<u64>() {
                Ok(n) => visitor.visit_u64(n),
                Err(_) => Err(Stop::new(format!("the key `{}` is no whole number", self.0))),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Key<'de> {
    type Error = Stop;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stop> {
        visitor.visit_str(self.0)
    }

    number_keys! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    serde::forward_to_deserialize_any! {
        bool i128 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

/// A word of an enumeration, which holds nothing else.
struct Word<'n>(&'n str);

impl<'de> EnumAccess<'de> for Word<'de> {
    type Error = Stop;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Stop> {
        let word: StrDeserializer<'_, Stop> = self.0.into_deserializer();
        Ok((seed.deserialize(word)?, self))
    }
}

impl<'de> VariantAccess<'de> for Word<'de> {
    type Error = Stop;

    fn unit_variant(self) -> Result<(), Stop> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _: T) -> Result<T::Value, Stop> {
        Err(de::Error::custom("a single word stands where more is needed"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Stop> {
        Err(de::Error::custom("a single word stands where more is needed"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Stop> {
        Err(de::Error::custom("a single word stands where more is needed"))
    }
}
