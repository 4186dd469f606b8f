use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Asked, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use proptest::prelude::*;

use super::*;

pub(crate) fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Asked::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, room: u16) -> Vec<u8> {
    let mut edns = Edns::new();
    edns.set_max_payload(room);
    message.set_edns(edns);
    message.to_vec().unwrap()
}

fn addresses(count: u8) -> Vec<Record> {
    (0..count).map(|n| Record::A(Ipv4Addr::new(10, 0, 0, n))).collect()
}

#[test]
fn an_ordinary_question_is_read() {
    let bytes = question("Web.Shop.svc.cluster.local.", RecordType::AAAA).to_vec().unwrap();
    let query = Query::parse(&bytes).unwrap();
    assert_eq!(query.name().unwrap(), "web.shop.svc.cluster.local");
    assert_eq!((query.kind(), query.room()), (AAAA, 512));
    let bytes = with_edns(question("web.", RecordType::A), 4096);
    assert_eq!(Query::parse(&bytes).unwrap().room(), MOST_OVER_UDP, "more would come in fragments");
}

#[test]
fn what_is_no_ordinary_question_is_left_alone() {
    let plain = question("web.", RecordType::A);
    let bytes = plain.to_vec().unwrap();
    assert!(Query::parse(&bytes).is_some());
    for cut in 0..bytes.len() {
        assert!(Query::parse(&bytes[..cut]).is_none(), "the first {cut} bytes");
    }
    assert!(Query::parse(&[&bytes[..], b"x"].concat()).is_none(), "with something behind it");
    for opcode in [OpCode::Update, OpCode::Notify, OpCode::Status] {
        let mut other = plain.clone();
        other.metadata.op_code = opcode;
        assert!(Query::parse(&other.to_vec().unwrap()).is_none(), "{opcode:?}");
    }
    let mut two = plain.clone();
    two.add_query(Asked::query(Name::from_ascii("other.").unwrap(), RecordType::A));
    assert!(Query::parse(&two.to_vec().unwrap()).is_none());
    let mut answer = plain.clone();
    answer.metadata.message_type = MessageType::Response;
    assert!(Query::parse(&answer.to_vec().unwrap()).is_none());
    let mut newer = plain;
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.set_edns(edns);
    assert!(Query::parse(&newer.to_vec().unwrap()).is_none(), "a later version of EDNS");
    // A pointer in the question, to itself.
    let pointing = [&bytes[..HEADER], &[0xc0, 12, 0, 1, 0, 1]].concat();
    assert!(Query::parse(&pointing).is_none());
}

#[test]
fn an_answer_says_what_was_asked_letter_for_letter() {
    let bytes = with_edns(question("wEb.ShOp.svc.cluster.local.", RecordType::A), 1232);
    let query = Query::parse(&bytes).unwrap();
    let records = [Record::A(Ipv4Addr::new(10, 96, 0, 1)), Record::Aaaa(Ipv6Addr::LOCALHOST)];
    let answer = respond(&query, &records, 30, query.room());
    assert!(is_answer_to(&answer, &bytes));
    assert_eq!(&answer[HEADER..HEADER + query.asked.len() - HEADER], &query.asked[HEADER..], "0x20 and all");
    let read = Message::from_vec(&answer).unwrap();
    assert_eq!(read.metadata.response_code, ResponseCode::NoError);
    assert!(read.metadata.authoritative && read.metadata.recursion_desired && !read.metadata.truncation);
    assert!(read.edns.is_some(), "EDNS is answered by EDNS");
    let told: Vec<_> = read.answers.iter().map(|r| (r.name.clone(), r.ttl, r.data.clone())).collect();
    let name = Name::from_ascii("web.shop.svc.cluster.local.").unwrap();
    assert_eq!(told[0], (name.clone(), 30, RData::A(Ipv4Addr::new(10, 96, 0, 1).into())));
    assert_eq!(told[1], (name, 30, RData::AAAA(Ipv6Addr::LOCALHOST.into())));
}

#[test]
fn what_does_not_fit_is_left_out_and_said_to_be() {
    let bytes = question("web.", RecordType::A).to_vec().unwrap();
    let query = Query::parse(&bytes).unwrap();
    let cut = respond(&query, &addresses(100), 30, query.room());
    assert!(cut.len() <= 512);
    let read = Message::from_vec(&cut).unwrap();
    assert!(read.metadata.truncation && (20..100).contains(&read.answers.len()), "{}", read.answers.len());
    let whole = Message::from_vec(&respond(&query, &addresses(100), 30, MOST_OVER_TCP)).unwrap();
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 100);
}

#[test]
fn a_failure_is_the_clients_answer() {
    let bytes = with_edns(question("eXample.com.", RecordType::MX), 1232);
    let read = Message::from_vec(&failure(&bytes).unwrap()).unwrap();
    assert_eq!((read.metadata.id, read.metadata.response_code), (0x1234, ResponseCode::ServFail));
    assert_eq!(read.queries[0].query_type(), RecordType::MX);
    let mut update = question("example.com.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    let read = Message::from_vec(&failure(&update.to_vec().unwrap()).unwrap()).unwrap();
    assert_eq!((read.metadata.op_code, read.queries.len()), (OpCode::Update, 0));
    assert_eq!(failure(&failure(&bytes).unwrap()), None, "an answer is not answered");
    assert_eq!(failure(b"rubbish"), None);
}

#[test]
fn only_the_absence_of_an_owned_name_is_corrected() {
    let code = |code: ResponseCode| {
        let mut message = question("web.", RecordType::TXT);
        message.metadata.message_type = MessageType::Response;
        message.metadata.response_code = code;
        let mut bytes = message.to_vec().unwrap();
        owned_exists(&mut bytes);
        Message::from_vec(&bytes).unwrap().metadata.response_code
    };
    assert_eq!(code(ResponseCode::NXDomain), ResponseCode::NoError);
    assert_eq!(code(ResponseCode::ServFail), ResponseCode::ServFail);
    assert_eq!(code(ResponseCode::Refused), ResponseCode::Refused);
    owned_exists(&mut []);
}

proptest! {
    #[test]
    fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        if let Some(query) = Query::parse(&bytes) {
            let answer = respond(&query, &addresses(3), 30, query.room());
            prop_assert!(is_answer_to(&answer, &bytes));
        }
        let _ = failure(&bytes);
        owned_exists(&mut bytes.clone());
    }

    /// Ordinary questions, one byte of which is another: the second opinion reads what we read.
    #[test]
    fn what_is_read_is_what_others_read(
        name in "[a-zA-Z0-9]{1,20}(\\.[a-zA-Z0-9]{1,20}){0,4}",
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = question(&format!("{name}."), RecordType::A).to_vec().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Some(query) = Query::parse(&bytes) {
            let read = Message::from_vec(&bytes).unwrap();
            prop_assert_eq!(read.queries.len(), 1);
            prop_assert_eq!(u16::from(read.queries[0].query_type()), query.kind());
            if let Some(name) = query.name() {
                let theirs = read.queries[0].name().to_ascii().to_lowercase();
                prop_assert_eq!(theirs.trim_end_matches('.'), name);
            }
        }
    }
}
