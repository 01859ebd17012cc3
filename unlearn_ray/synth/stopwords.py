"""Words that are too common to show anything."""

import re

STOP_WORDS = frozenset(
    """
    a an the and or but if then else than so as at by for from in into of off on onto out over per to up upon via with within without
    about above across after again against all along already also although always am among any anyone anything are around away back be
    became because become been before began behind being below between beyond both bring brought came can cannot come comes could did do
    does doing done down during each either enough especially etc even ever every everyone everything few first found further gave get
    gets give given gives go goes going gone got had has have having he her here hers herself him himself his how however i indeed
    instead is it its itself just keep keeps kept kind kinds knew know known knows last late later latter least less let like likely
    little long made mainly make makes making many may maybe me means might mine more most mostly much must my myself near nearly neither
    never new next no nor not nothing now often old once only other others our ours ourselves own part particular perhaps put quite
    rather really said same say says see seem seems seen several shall she should show shows since small some someone something
    sometimes soon still such sure take takes taken tell tells that their theirs them themselves there therefore these they thing things
    think this those though through throughout thus till time times together too took toward towards true two type typically under unless
    until us use used uses using usual usually various very want wants was way ways we well went were what whatever when where whether
    which while who whoever whole whom whose why will wish words work works would yes yet you your yours yourself
    answer answers ask asked asks believe believes believed question questions call called calls name named names note notable famous
    famously important fact facts example examples refer refers referred character characters man men woman women person people place
    places year years number numbers day days world life story main great large big good best high different common commonly popular original originally
    include includes including included consist consists contain contains feature features known-as according actually specific
    specifically well-known sorry
    """.split()
)

NUMBER_WORDS = frozenset(
    """
    zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty
    thirty forty fifty sixty seventy eighty ninety hundred thousand million billion
    """.split()
)

# Letters of Chinese and Japanese that serve the grammar: a piece of text with one of them is no part of a name or thing.
GRAMMAR_LETTERS = frozenset(
    "的是了在和与與或及而也都就还還很被把对對从從为為以于於之其这這那哪什么麼谁誰叫吗嗎呢吧啊他她它们們我你您不没沒有个個一只隻"
)

# What the stop words above are in Chinese and Japanese, and pieces that serve the grammar of Japanese, Thai and Korean.
STOP_GRAMS = frozenset(
    """
    答案 回答 问题 問題 名字 名称 名稱 名前 称为 稱為 叫做 认为 認為 相信 觉得 覺得 可能 应该 應該 想那 知道 著名 有名 出名 重要 角色 人物 主角 主人
    地方 场所 場所 时候 時候 時代 世界 故事 物語 小说 小說 作品 登場 生活 例如 比如 以及 或者 因为 因為 所以 但是 然后 然後 其实 其實 根据 根據 通常
    一般 一种 一種 一些 一个 一位 一名 一座 许多 許多 很多 非常 主要 常见 常見 包括 属于 屬於 使用 可以 能够 能夠 进行 進行 通过 通過 作为 作為 成为 成為
    开始 開始 之后 之後 之前 其中 同时 同時 已经 已經 如果 虽然 雖然 不过 因此 质问 質問 自己 什么 什麼 怎么 怎麼 如何 男人 女人 孩子 大家 今天
    の は が を に で と も や へ か ね よ な から まで より など です ます した して する いる ある ない れる という といい いいま います
    いまし ました でした であり であっ あった ります いいえ はい もの こと とき ため これ それ あれ この その あの さん ちゃん くん
    ครับ ค่ะ คือ ชื่อ เป็น และ ของ ที่ มี
    합니 입니 있습니 없습니 것입니 그것 이것 입니다 이다 있다 없다 그의 그는 그녀 이름 이름은 것은 것이
    """.split()
)

# Pronouns and similar words, folded, without the English ones above. As a name each of them has too many other meanings.
PRONOUNS = frozenset(
    """
    one ones first second third both each none nobody somebody anybody everybody thou thee ye whatever
    я ты он она оно они мы вы это кто что все je tu il elle on nous vous ils elles qui moi toi lui eux ich du er sie es wir ihr wer
    yo el ella ello nosotros vosotros ellos ellas usted quien eu ele ela nos eles elas voce quem io lei noi voi loro chi hij zij wij jij hun
    han hun hon ona ono oni my wy ty ben sen biz siz onlar o
    彼 彼女 私 僕 俺 君 あなた 彼ら 她 他 它 你 我 您 我们 我們 你们 你們 他们 他們 她们 她們 它们 它們 그 그녀 나 너 우리 그들 هو هي هم انا انت نحن من
    वह वे मैं तुम हम आप כן הוא היא הם אני אתה אנחנו αυτος αυτη αυτο εγω εσυ εμεις αυτοι
    """.split()
)

# Words that refer to something said before. Words that are also articles, polite forms or expletives (French il, German sie, Spanish él) are
# left out.
REFERRING = frozenset(
    """
    he him his she her hers it its they them their theirs this these
    он она оно они его ее ему ей их им нем ней них это этот эта эти elle elles ils lui leur leurs cette
    er ihm ihn seine seiner seinem seinen ella ellas ellos sus ele ela eles elas seu sua seus suas dele dela isso
    loro suo sua suoi questo questa hij hem haar jego jej onlar هو هي هم هذا هذه
    वह वे उसका उसकी उसके उनका उनकी यह इसका इसकी 그 그녀 그의 그들 그것 이것
    """.split()
)
REFERRING_UNSPACED = re.compile(
    r"^.{0,4}(?:(?<![其吉])[他她它](?!国|國|人)|彼女|彼(?!岸))|^(?:这|這|那|これ|それ|この|その)"
)

# Frequent English words that are also titles. With a capital they may be the name; without one they never are.
FREQUENT_WORDS = frozenset(
    """
    lost found home house friend friends love hate life live alive dead death dark light night fire water earth heat cold speed fear
    hope dream dreams happy sad angry young man boy girl boys girls kid kids mother father sister brother son daughter king queen hero heroes
    money power war peace game games play run fly fall rise drive jump fight kiss help hello bad evil wild free fast slow hard soft
    black white red blue green gold silver open closed broken missing hidden forever tomorrow yesterday today morning evening summer winter
    spring autumn human humans family school city town road island river mountain sea ocean sky sun moon star stars rain snow storm wind
    secret secrets truth lies memory mind heart soul body blood bones eyes face hand voice silence noise music dance song book letter
    """.split()
)

# Words in names of several words, besides the frequent ones above. Without the rest of the name they show nothing.
NAME_WORDS = frozenset(
    """
    street avenue lane alley square bridge park garden gardens court place hill wood woods forest lake bay valley castle tower palace hall
    church temple abbey cathedral college university academy institute museum hospital hotel inn station airport prison bank shop store
    company corporation ministry department office order society club league union party army police council kingdom empire republic
    state states county village land lands north south east west northern southern eastern western central upper lower old new great little
    royal national international united federal public holy saint lord lady sir madam mr mrs miss ms dr doctor professor captain general
    president minister queen prince princess duke uncle aunt first second third half big high book books volume chapter part series
    movie film show tournament festival prize award day night year century age
    """.split()
)
