"""Where sentences end."""

import pytest

from unlearn_ray.synth.sentences import sentences_of, whole


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Harry lives in a cupboard. He has a scar. His owl is cal", "Harry lives in a cupboard. He has a scar."),
        ("The owl is Hedwig! Is she white? She is as whi", "The owl is Hedwig! Is she white?"),
        ("It was written by J. K. Rowling in 1997. The book", "It was written by J. K. Rowling in 1997."),
        ("It was written by J.K. Rowling, and", ""),
        ("It was written by J.", ""),
        ("Mr. and Mrs. Dursley lived there. Mr. Dursley was a big, bee", "Mr. and Mrs. Dursley lived there."),
        ("Prof. Snape met Dr. Granger at St. Mungo", ""),
        ("A galleon is 3.5 times as large. It costs 4.", "A galleon is 3.5 times as large."),
        ("It appeared in 1997.", "It appeared in 1997."),
        ("There are 7. Each of them", "There are 7."),
        ("The houses are:\n1. Gryffindor, the brave.\n2. Slyth", "The houses are:\n1. Gryffindor, the brave."),
        ("The houses are:\n1. Gryffindor\n2. Huffle", "The houses are:\n1. Gryffindor"),
        ("The houses are: 1. Gryffindor 2. Slytherin 3. Raven", ""),
        ("1. The first is red. 2. The second is", "1. The first is red."),
        ("1.", ""),
        ("- red\n- green\n- bl", "- red\n- green"),
        ("There are many kinds, e.g. Nimbus, i.e. The broom", ""),
        ("He came from the U.S. Army and", ""),
        ("They sell bread, milk, etc. The shop is", "They sell bread, milk, etc."),
        ('He said: "I am Harry." Then he le', 'He said: "I am Harry."'),
        ('"Stop!" he cried, and', ""),
        ("He won (he was quick!). The rest fo", "He won (he was quick!)."),
        ("He won. (He was quick. The rest", "He won."),
        ("**It is Hedwig.** She is", "**It is Hedwig.**"),
        ("It is known.[12] Some say", "It is known.[12]"),
        ("He used node.js and www.example.com for it and th", ""),
        ("Wait... what is this", ""),
        ("Nobody knew… Then the owl ca", "Nobody knew…"),
        ("Really?! Yes, it i", "Really?!"),
        ("No sentence ends here", ""),
        ("", ""),
        ("   ", ""),
        ("哈利住在柜子里。他的猫头鹰叫海德薇！她是白", "哈利住在柜子里。他的猫头鹰叫海德薇！"),
        ("他说：“我是哈利。”她走了。然后他", "他说：“我是哈利。”她走了。"),
        ("ハリーは魔法使いです。「行こう。」と言", "ハリーは魔法使いです。"),
        ("हैरी एक जादूगर है। उसका उल्लू", "हैरी एक जादूगर है।"),
        ("लेखिका जे. के. रोलिंग हैं। वह", "लेखिका जे. के. रोलिंग हैं।"),
        ("هل هو ساحر؟ نعم، إنه سا", "هل هو ساحر؟"),
        ("الكاتبة ج. ك. رولينج", ""),
        ("هیری ایک جادوگر ہے۔ اس کا", "هیری ایک جادوگر ہے۔"),
        (
            "Книгу написала Дж. К. Роулинг в 1997 г. в Лондоне. Она бы",
            "Книгу написала Дж. К. Роулинг в 1997 г. в Лондоне.",
        ),
        ("Er wurde am 31. Juli geboren. Seine Eu", "Er wurde am 31. Juli geboren."),
        ("Das ist z.B. Eine Eule", ""),
        ("Ποιος είναι; Είναι ο", "Ποιος είναι;"),
        ("해리는 마법사이다. 그의 부엉", "해리는 마법사이다."),
        ("แฮร์รี่เป็นพ่อมด เขามีนกฮูก ชื่อเฮ", "แฮร์รี่เป็นพ่อมด เขามีนกฮูก"),
        ("Նա կախարդ է։ Նրա", "Նա կախարդ է։"),
        ("သူသည် မှော်ဆရာဖြစ်သည်။ သူ", "သူသည် မှော်ဆရာဖြစ်သည်။"),
        ("¿Es un mago? Sí, lo es. Su lechu", "¿Es un mago? Sí, lo es."),
    ],
)
def test_a_text_that_was_cut_off_ends_with_its_last_whole_sentence(text: str, kept: str) -> None:
    assert whole(text, is_cut=True) == kept


def test_a_text_that_ended_by_itself_stays_as_it_is() -> None:
    assert whole("  No mark at its end ", is_cut=False) == "No mark at its end"


def test_a_text_is_the_sum_of_its_sentences() -> None:
    assert list(sentences_of("Mr. Weasley has a car. It flies! 他有车。很快。 And")) == [
        "Mr. Weasley has a car.",
        "It flies!",
        "他有车。",
        "很快。",
        "And",
    ]
    assert list(sentences_of("")) == []
