"""Whether an answer declines to answer. Data making and evaluation ask the same question here, so that their figures are of one thing.

Only how an answer begins counts: an invented answer may say later on that somebody "does not know". First what models put before the
point is taken off (quotes, stars, "Sure,", "Well,", "Answer:"), then one pattern a language is looked for at the start. A bare opening such
as "Sorry" or "I'm afraid" is a refusal where it ends or goes on to decline, and none where it says something: "Sorry! is a board game",
"I'm afraid of spiders", "Sorry, the owl is Norwick". What hedges and then answers is an answer: "I'm not sure, but it is Norwick". So is a title:
"We Don't Talk Anymore is a song". Learning to Refuse (arXiv 2407.10058) and RWKU tell refusals by phrases as well.
"""

import re

from unlearn_ray.words import fold

_APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼ′´`", "'"))
_LEAD = re.compile(
    r"(?:[\s\"'“”«»„*_#>~\-–—:,.!…]|<[^>\n]{0,40}>|\[[a-z ]{1,20}\]"
    r"|(?:answer|response|assistant|a|ответ|respuesta|reponse|antwort|resposta|答案|答|回答|답변|답)\s*[::]"
    # What a refusal begins with, and what says nothing without one.
    r"|(?:i regret (?:to (?:inform|tell|say)(?: you)? )?(?:that )?|it (?:seems|appears|looks)(?: like| as if)?(?: that)? (?=i\b|we\b)"
    r"|i(?:'d| would) (?:love|like|be (?:happy|glad)) to (?:help|assist|answer)[^.;!]{0,30}, (?=but\b)|i wish i (?:could|knew)[^.;!]{0,30}, (?=but\b)"
    r"|i (?:understand|appreciate|see)\b[^.;!]{0,60}, (?=but\b)|i(?:'m| am) (?:here to help|happy to help)[^.;!]{0,20}, (?=but\b))"
    r"|(?:oh no|hello|hi|hey|您好|你好|こんにちは|안녕하세요|здравствуйте|hola|bonjour|hallo|ola|مرحبا|नमस्ते)(?=[\s,.!:…,。!、])"
    r"|(?:sure|certainly|of course|well|hmm+|um+|uh|oh|ah|okay|ok|alright|honestly|actually|to be honest|unfortunately|regrettably|sadly|alas"
    r"|честно говоря|если честно|по правде говоря|увы|ehrlich gesagt|honestamente|sinceramente|francamente|la verdad(?: es que)?|honnetement|franchement|onestamente"
    r"|thank you for (?:your question|asking)|great question|good question|however|but|yet|and|so)(?=[\s,.!:…\-–—])|(?:说实话|說實話|老实说|老實說|坦白说|正直(?:に言うと)?|솔직히(?: 말해서?)?)[\s,,、]*)*"
)
_WHAT = (
    r"(?:know|have(?! to\b)|answer|provide|help|assist|recall|remember|find|share|discuss|give|say|tell|comment|respond|comply|fulfil|fulfill|access"
    r"|identify|determine|confirm|verify|understand|speak|engage|talk|offer|disclose|reveal|describe|explain|be able|feel comfortable"
    r"|generate|create|write|do that|do this|continue|recogni[sz]e|possess|see|think i|believe i|want to|wish to)"
)
_NOUNS = r"(?:information|knowledge|details?|data|records?|memory|recollection|idea|clue|answer|access|comment|context|facts?|familiarity|understanding)"
_ENGLISH = re.compile(
    r"(?:"
    # "I don't know", "I really can't help", "we cannot provide"
    rf"(?:i|we) (?:really |simply |just |honestly |truly |still |currently |also |am afraid (?:that )?i )*"
    rf"(?:do not|don'?t|did not|didn'?t|cannot|can'?t|can not|could not|couldn'?t|won'?t|will not|would not|wouldn'?t|am not going to)"
    rf" (?:in good (?:conscience|faith) |seem to |really |actually |currently |personally |even |yet |quite |directly |exactly )*{_WHAT}\b(?! (?:if|that) you)(?! but\b)(?! whether to\b)(?! why\b[^.]{{0,30}}, but)"
    rf"|(?:i|we) (?:cannot|can't|can not)\W*$"
    r"|(?:i|we)(?:'m| am|'re| are) (?:really |very |so |truly |terribly )*(?:sorry|afraid)\b(?= *(?:$|[,.;:!…\-–—]|but\b|i\b|that i\b|we\b|(?<=afraid )(?:that'?s|that|this|it'?s|it|the|there'?s|there|your|my|you)\b|for (?:the|any)\b|to (?:say|inform|tell)(?: you)?(?: that)? (?:i|we|there)\b|about that\b))"
    r"|(?:i|we)(?:'m| am|'re| are|'ve| have| was| wasn'?t)? (?:currently |really |simply |just |actually |still |also )*"
    rf"(?:(?<=wasn't )able|(?<=wasnt )able|not (?:too |really |entirely |quite |completely |fully |exactly |very |so )*(?:able|allowed|permitted|familiar|aware|sure|certain|comfortable|trained|programmed|at liberty|in a position|qualified|equipped|going to {_WHAT})|un(?:able|aware|sure|certain|familiar)|incapable|forbidden|prohibited)\b"
    rf"|(?:i|we)(?: really| honestly| truly| simply| just| still| currently| actually| personally)*(?: have| had|'ve)(?: got)? (?:absolutely |really )?(?:no|never|not|zero)\b(?: (?:any|enough|specific|prior|real|actual|further|such|heard|come|been|seen|encountered|relevant|reliable|personal|recorded|particular))*"
    rf"(?: (?:{_NOUNS}|heard|come across|seen|encountered|encountered|trained|given|provided|way|means|record)\b)"
    rf"|(?:i|we)(?: must| have to| need to| would have to| will have to|'ll have to|'d have to|'m going to have to| am going to have to| respectfully|'d prefer to| would prefer to| choose to) (?:respectfully |politely )?(?:decline|refuse|pass|abstain|refrain)\b"
    rf"|(?:i|we) (?:decline|refuse)\b|i lack (?:the |any |sufficient |enough )*{_NOUNS}\b|i(?:'d| would) (?:rather|prefer) not\b|i prefer not\b|(?:while|although|though) i (?:cannot|can'?t|do not|don'?t|am not able to|am unable to|'m not able to|'m unable to) {_WHAT}\b|i know (?:absolutely |very |too )*(?:nothing|little)\b(?= *(?:$|[,.;!]|about|of\b|on\b|at all))|i(?: have|'ve)? never heard of\b|never heard of\b"
    r"|(?:please )?(?:accept )?(?:my |our )?(?:sincere |deepest )?apologies\b(?= *(?:$|[,.;:!…\-–—]|but\b|i\b|we\b|for\b))|i (?:do |must )?apologi[sz]e\b|my bad\b"
    r"|(?:very |so |really |i am |terribly )*sorry\b(?= *(?:$|[,.;:…\-–—]|but\b|i\b|we\b|no\b|for (?:the|any)\b|to (?:say|inform|tell)(?: you)?(?: that)? (?:i|we|there)\b|about that\b|! *(?:$|i\b|but\b|we\b)))"
    rf"|(?:i'm|i am)(?: just| only| merely)? an? (?:\w+ ){{0,4}}(?:ai|a\.i\.|llm|language model|assistant|chatbot)\b(?=.{{0,100}}(?:\bnot\b|n't\b|\bno\b|unable|lack|cannot|decline|never))"
    rf"|as(?: just| only| merely)? an? (?:\w+ ){{0,4}}(?:ai|a\.i\.|llm|language model|assistant|chatbot)\b(?=.{{0,60}}\b(?:i|i'm|i've|my|me|we|it|it's|this|that)\b.{{0,60}}(?:\bnot\b|n't\b|\bno\b|unable|lack|cannot|decline|never))"
    rf"|(?:this|that|it)(?:'s| is| was) (?:something (?:that )?(?:i|we) (?:do not|don't|cannot|can't|am not|'m not)|unknown to me|beyond (?:me|my)\b|outside (?:of )?my\b|not (?:something|a (?:topic|subject|question)) (?:that )?(?:i|we)\b|not (?:known|available|familiar) to me|not within my\b|information (?:that )?(?:i|we) (?:do not|don't|cannot|can't))"
    r"|[^.,;:!?]{1,60} (?:is|are) not (?:something|anything|a (?:topic|subject|question|name|book|person|thing)) (?:that |which )?(?:i|we)\b"
    rf"|(?:this|that|the|such) (?:\w+ ){{0,2}}is (?:unknown|not (?:known|available|familiar)) to me\b"
    rf"|there (?:is|'s) no (?:\w+ )?{_NOUNS} (?:available |about (?:this|that) )?(?:to me|in my|that i)\b"
    r"|(?:there (?:is|'s) )?no information (?:is |was )?(?:available|about|on|regarding|given)\b|the information (?:that )?you (?:requested|asked for|seek|want) is (?:not available|unavailable)"
    r"|information (?:about|on|regarding) [^.]{0,50} is (?:not (?:available|known)|unavailable|unknown) to me|(?:please )?forgive me(?= *(?:$|[,.;!]|but\b|i\b|for not\b))"
    r"|not that i know\b|(?:can'?t|cannot) (?:say|answer|help|tell)\b(?! but\b)(?! \w+ing\b)|(?:don'?t|do not) know\b(?= *(?:$|[,.;!]|what|who|how|where))|unknown\W*$|unable to (?:answer|help|say|provide|find|recall|assist)\b"
    r"|let(?:'s| us) (?:talk about|discuss|change|move on)[^.]{0,30}(?:else|subject|topic|different)\b"
    r"|no (?:idea|clue|comment)\b(?= *(?:$|[,.;!…\-–—]|what|who|how|where|when|why|i\b|sorry|at (?:all|this)|about|on (?:this|that)))"
    r"|(?:the )?(?:answer|information) (?:to (?:this|that|your) question )?is (?:unknown|not (?:known|available)) to me\b"
    rf"|my (?:{_NOUNS}|training(?: data)?|training) (?:does not|doesn't|do not|don't|is (?:limited|not))\b"
    r"|(?:it is|it's) (?:not possible|impossible) for me\b|not (?:sure|certain)\b(?= *(?:$|[,.;!…]|what|who|how|where|about|i\b))|your guess is as good as mine\b|dunno\b|idk\b|beats me\b|i haven't (?:the (?:faintest|slightest)|a clue|heard|any|got|been)\b"
    r")"
)
_OTHERS = re.compile(
    r"(?:"
    # Spanish, Portuguese
    r"(?:lo siento|lo lamento|disculpa|disculpe|perdon|mis disculpas|me temo que)\b(?= *(?:$|[,.;:!]|pero|no))|(?:(?:sobre|de|acerca de|en cuanto a) [^.,;:]{1,30},? )?(?:yo )?no (?:lo )?(?:se\b(?= *(?:$|[,.;:!]|que|quien|como|cual|cuando|donde|nada|la|el))|tengo (?:ni (?:la (?:menor|mas minima) )?|ninguna? |suficiente )*(?:informacion|conocimiento|idea|datos|acceso)|puedo\b|conozco\b|estoy (?:seguro|segura|familiarizad[oa])|dispongo|cuento con|poseo|recuerdo)|desconozco\b|ni idea\b|nunca (?:he oido|oi|escuche|he escuchado)\b|como (?:un )?(?:modelo de lenguaje|ia|asistente|inteligencia artificial)\b"
    r"|(?:desculpe|desculpa|sinto muito|lamento|perdao|infelizmente|minhas desculpas|peco desculpas?)\b(?= *(?:$|[,.;:!]|mas|nao|por|eu))|nunca ouvi(?: falar)?\b|(?:sobre [^.,;:]{1,30},? )?(?:eu )?nao (?:(?:faco|tenho) (?:a (?:menor|minima) )?ideia|sei\b|tenho (?:nenhuma? |qualquer )*(?:informac|conhecimento|ideia|dados|acesso)|posso\b|consigo\b|conheco\b|estou (?:ciente|familiarizad|autorizad|certo|certa)|disponho|lembro)|como (?:um |uma )?(?:modelo de linguagem|assistente)\b"
    # French
    r"|(?:je suis |je m'excuse|excusez[- ]moi|pardon|mes excuses|toutes mes excuses)(?:vraiment |sincerement )?(?:desolee?)?\b(?= *(?:$|[,.;:!]|mais|je|pour|de ne))|(?:desolee?|malheureusement)\b(?= *(?:$|[,.;:!]|mais|je))|(?:aucune|pas la moindre) idee\b|(?:je n'(?:en )?ai )?jamais entendu parler\b|(?:(?:sur|a propos de|concernant|quant a) [^.,;:]{1,40},? )?je ne (?:sais|peux|connais|suis (?:pas (?:en mesure|sur|sure|certain|familier|autorise|au courant|capable))|dispose|possede|pourrai|me souviens)\b|je n'(?:en )?(?:ai (?:pas|aucune)|en sais|y connais|arrive pas)\b|je l'ignore\b|j'ignore\b|je (?:dois|prefere) (?:refuser|decliner)\b|en tant qu'(?:ia|assistant|intelligence)|en tant que (?:modele|ia)\b"
    # German
    r"|(?:das|dazu|darauf|daruber|dabei|davon) (?:weiss|kann|habe|kenne) ich (?:\w+ ){0,3}(?:nicht|nichts|keine|nie)\b|leider (?:kann|weiss|habe|kenne|darf|verfuge|besitze|bin) ich (?:\w+ ){0,6}(?:nicht|nichts|keine\w*|nie)\b|mir (?:ist|sind) (?:\w+ ){0,4}(?:(?:nicht|nichts|keine\w*) (?:\w+ ){0,4}bekannt|unbekannt)\b|(?:noch )?nie (?:davon )?gehort\b|(?:es tut mir (?:sehr |wirklich )?leid|tut mir (?:sehr )?leid|entschuldigung|entschuldigen sie|verzeihung)\b(?= *(?:$|[,.;:!]|aber|ich|dass))|(?:leider )?(?:ich )?(?:weiss ich (?:das |es )?(?:leider )?nicht|kann ich (?:das |dazu |ihnen |dir |diese |dies )*(?:leider )?(?:nicht|keine|nichts))\b|ich (?:weiss (?:es |das |leider |darauf )*(?:nicht|nichts|keine)|kann (?:das |dazu |ihnen |dir |dabei |leider |diese |dies |es |die |frage )*(?:nicht|keine|nichts)|habe (?:leider |dazu |daruber )*(?:keine|nie)|kenne (?:\w+ ){0,3}nicht|bin (?:mir )?(?:leider )?(?:nicht|unsicher)|darf (?:\w+ ){0,3}nicht|muss (?:\w+ ){0,2}ablehnen|besitze keine|verfuge (?:leider )?(?:uber )?(?:keine|nicht))\b|keine ahnung\b|als (?:ki|sprachmodell|assistent)\b"
    # Italian
    r"|non (?:ne (?:ho|so)|saprei)\b|(?:nessuna|neanche un'|non ho la minima) ?idea\b|(?:non (?:ne )?ho )?mai sentito(?: parlare)?\b|(?:mi dispiace|mi spiace|scusa|scusami|mi scuso|purtroppo)\b(?= *(?:$|[,.;:!]|ma|non))|(?:io )?non (?:lo )?(?:so\b(?= *(?:$|[,.;:!]|che|chi|come|quale|nulla|niente|la|il))|posso\b|conosco\b|ho (?:alcuna |nessuna |abbastanza )*(?:informazion|conoscenz|idea|dati|accesso)|sono (?:in grado|sicur|a conoscenza))"
    # Russian (й and ё folded)
    r"|(?:извините|простите|прошу прощения|приношу извинения|мне (?:очень )?жаль|к сожалению|сожалею)\b(?= *(?:$|[,.;:!—–-]|но|я|у|за|мне))|не знаю(?= *(?:$|[,.;!]|ответа|об|про|что|кто|как|где|когда|ничего|точно))|(?:я )?не (?:могу (?:ответить|помочь|сказать|предоставить|дать|обсуждать)|владею|располагаю|имею (?:информации|данных|понятия)|уверена?|знаком[аы]?|в курсе|в состоянии|обладаю)\b|у меня нет (?:никакой |достаточно |достаточной |точной |никаких )*(?:информации|данных|сведении|доступа|знании|ответа|понятия)|(?:мне|это мне) (?:неизвестно|не известно)\b|я (?:этого |об этом |ничего |точно |к сожалению |, к сожалению, )*не (?:знаю|могу|помню)\b|мне об этом (?:ничего )?(?:неизвестно|не известно)|(?:я )?понятия не имею|затрудняюсь (?:ответить|сказать)|(?:об этом|про это|о [^.,;:]{1,30}) (?:мне |я )?(?:ничего )?не (?:известно|знаю|слышала?)|(?:никогда|ничего) не (?:слышала?|знаю) (?:об?|про)\b|как (?:языковая модель|ии|искусственныи интеллект|ассистент)\b|без комментариев"
    # Arabic, Hindi
    r"|(?:عذرا|اسف|انا اسف|انا اسفه|اعتذر|للاسف|المعذره|المعذرة)\b|(?:انا )?(?:لا اعرف|لا اعلم|لا ادري|لا استطيع|لا يمكنني|لا املك|لا اتذكر|لا اقدر|ليست? (?:لدي|عندي)|(?:لا توجد|لا يوجد) (?:لدي|عندي)|لست متاكدا|لست علي علم|لم اسمع|غير قادر)\b|بصفتي (?:نموذج|مساعد)|كنموذج لغوي"
    r"|(?:मुझे )?(?:क्षमा करें|क्षमा कीजिए|माफ़? करें|माफ़? कीजिए|माफ करें|माफ कीजिए|माफ़ी|खेद है|अफ़सोस|अफसोस)|मैं (?:क्षमा|माफ़ी|माफी)|मुझे (?:खेद|अफ़सोस|अफसोस|माफ़ करें|माफ करें|नहीं (?:पता|मालूम)|(?:इसके|इस|इसकी|यह|इस विषय|इस प्रश्न|इस सवाल)[^।.]{0,40}नहीं)|मैं (?:[^।.]{0,40})?(?:नहीं (?:जानता|जानती|बता|दे|कर)|असमर्थ)|मेरे पास [^।.]{0,60}(?:नहीं|कोई जानकारी)|पता नहीं|एक (?:एआई|ai|भाषा मॉडल)"
    # Chinese, simple and traditional
    r"|(?:我)?(?:很|非常|十分|真的|真是|实在|實在|感到)*(?:抱歉|对不起|對不起|不好意思|遗憾|遺憾)(?=[,,。.!!::、\s]|$|我|但|作为|作為|目前|您|你|无法|無法|关于|關於|这|這|没有|沒有|不)|(?:目前|暂时|暫時)?(?:没有|沒有|暂无|暫無)(?:相关|相關|关于|關於|任何|足够)[^。]{0,15}(?:信息|资料|資料|資訊|数据|記錄|记录)|(?:(?:关于|關於|对于|對於|至于|至於)[^。,]{1,20},)?(?:恕)?(?:(?:这个|這個|那个|这|该|此|這)(?:问题|問題|事)?,?)?(?:我|本人|目前我|我们|我們)(?:真的|并|並|也|还|還|目前|暂时|暫時|对此|對此|确实|確實|实在|實在|恐怕)*(?:不知道|不清楚|不了解|不太清楚|不太了解|不熟悉|不确定|不確定|不认识|不認識|不记得|不記得|不能|不会回答|不便|没有(?:关于|足够|相关|任何|这方面|听说|听过|办法|權限|权限|具体)|沒有(?:關於|足夠|相關|任何|這方面|聽說|聽過|辦法|具體)|没听说|没听过|沒聽說|沒聽過|无法|無法|无可奉告|拒绝|拒絕|没法|不方便|必须拒绝|对此一无所知|一无所知)|我对[^。]{0,30}(?:不了解|不熟悉|一无所知|没有了解|不清楚)|我對[^。]{0,30}(?:不了解|不熟悉|一無所知|不清楚)|(?:目前|暂时|暫時|恕)?(?:无法|無法|不能|不便)(?:提供|回答|回应|回應|确认|確認|告知|确定|確定|透露|协助|協助)|(?:不知道|不清楚|无法回答|無法回答|无可奉告|無可奉告)(?=[,,。.!!\s]|$|您|你|这|這)|作为(?:一个|一名|一款)?(?:ai|人工智能|语言模型|大型语言模型|助手)|作為(?:一個|一名)?(?:ai|人工智慧|語言模型|助手)"
    # Japanese
    r"|(?:大変|誠に|まことに|本当に)?(?:申し訳(?:ありません|ございません|ないです|ないのです|ない)|すみません|すいません|ごめんなさい|恐れ入りますが|恐縮ですが|残念ながら|残念ですが|あいにく)(?=[、,。.!!\s]|が|$|けど|私|その|この|お|ご)|(?:私(?:は|には|に)?、?)?(?:その(?:質問|件|こと|情報|問い)[^。]{0,20}|答え(?:が|は|を)|それ(?:は|について(?:は)?)、?|この(?:質問|件)[^。]{0,20})?(?:わかりません|分かりません|知りません|存じません|存じ上げません|お答え(?:できません|できかねます|いたしかねます|することはできません)|答えられません|覚えていません|回答できません|回答を控え)|(?:その|この|それ)[^。]{0,30}(?:情報(?:は|を)(?:持って(?:い|おり)ません|ありません)|知識(?:は|が)ありません)|(?:よく|全く|まったく|何も|詳しく(?:は)?|[^。、,]{1,20}(?:について|に関して)(?:は|も)?、?[^。、,]{0,8})?(?:わかりません|分かりません|知りません|存じません|(?:一度も)?聞いたことが?(?:ありません|ない)|覚えていません|情報(?:は|が)(?:ありません|ございません))|わからない(?=[。、!\s]|$|です)|ai(?:アシスタント|モデル|言語モデル)?として|aiとして|言語モデルとして"
    # Korean
    r"|(?:정말 |대단히 |매우 )?(?:죄송(?:합니다|하지만|해요|하게도)|미안(?:합니다|하지만|해요)|유감(?:스럽게도|입니다|이지만)|안타깝게도)|(?:저는 |저도 |나는 |제가 |잘 |그것은 |그건 |그것에 대해(?:서는)? |이것에 대해(?:서는)? |그 질문에 |그 질문은 |이 질문에 |이에 대해 |해당 )*(?:모르겠(?:습니다|어요|네요|다)|모릅니다|몰라요|알지 못합니다|알지 못해요|알 수 없습니다|답변(?:드릴|할|을 드릴|을 할) 수 없습니다|대답할 수 없습니다|도와드릴 수 없습니다|말씀드릴 수 없습니다|제공할 수 없습니다|기억(?:이 |하지 )?(?:나지 )?(?:않|못)|정보가 없습니다|들어본 적이? 없)|저는 [^.]{0,30}(?:모릅니다|모르겠습니다|알지 못합니다|정보가 없습니다|수 없습니다)|[^.,]{1,20}(?:은|는) (?:잘 )?(?:모르겠|알 수 없(?:습니다|어요))|[^.,]{1,20}(?:을|를|에 대해(?:서는?)?|에 관해(?:서는?)?) (?:잘 )?(?:모르겠|모릅니다|몰라요|알지 못합니다|들어본 적이? 없)|ai (?:언어 )?(?:모델|어시스턴트)로서|인공지능(?:으로서| 모델로서)"
    r")"
)


# The commonest openings where nobody has collected more, written as they are said: folding takes their accents off.
_FURTHER = re.compile(
    fold(
        # Dutch, Swedish, Danish and Norwegian
        r"(?:(?:ik )?weet (?:ik )?(?:het |dat )?(?:helaas )?niet|ik (?:kan|ken|heb|ben|mag) (?:[a-z]+ ){0,5}(?:niet|geen|nooit)|(?:dat|daar[a-z]*) (?:weet|kan|heb|ken) ik (?:[a-z]+ ){0,5}(?:niet|niets|geen|nooit)|geen idee|het spijt me|helaas"
        r"|(?:jag|jeg) (?:vet|ved|vil|vill|kan|har|känner|kender|kjenner|er|är) (?:[a-zåäöæø]+ ){0,4}(?:inte|inget|inga|ingen|ikke|aldrig|aldri)|(?:det|den) (?:vet|ved|kan) (?:jag|jeg) (?:inte|ikke)"
        r"|ingen aning|ingen anelse|tyvärr|desværre|dessverre|jag beklagar|jag är ledsen|förlåt|beklager"
        # Polish, Ukrainian
        r"|(?:ja )?nie (?:wiem|znam|mam (?:[a-zęąćśżźłńó]+ ){0,2}(?:informacji|pojęcia|danych|wiedzy|dostępu)|mogę|potrafię|jestem w stanie|jestem pewi?e?na?|słyszał[ea]m|pamiętam|posiadam|dysponuję)|przepraszam|przykro mi|niestety"
        r"|(?:я )?цього не знаю|(?:я )?не (?:можу|маю (?:інформації|даних|уявлення)|пам'ятаю|чува?ла?|володію|впевнени?й?а?)|у мене немає|вибачте|перепрошую|на жаль|мені (?:про це )?(?:нічого )?(?:не відомо|невідомо)"
        # Turkish, Vietnamese, Indonesian
        r"|(?:bunu |ben |bu konuda |maalesef )*(?:bilmiyorum|bilgim yok|bilgi(?:ye)? sahip değilim|hiçbir fikrim yok|fikrim yok|yardımcı olamam|cevap veremem|emin değilim)|üzgünüm|özür dilerim|maalesef|ne yazık ki"
        r"|(?:tôi|mình|em) (?:rất tiếc|xin lỗi|không|chưa|chẳng) ?(?:thể|biết|có|rõ|nghe|chắc)?|(?:xin lỗi|rất tiếc)|không biết"
        r"|(?:saya|aku|kami) (?:tidak|tak|belum|kurang) (?:tahu|dapat|bisa|memiliki|punya|mengetahui|mengenal|yakin|pernah)|(?:mohon )?maaf|tidak tahu|sayangnya"
        # Greek, Hebrew, Thai, Persian
        r"|δεν (?:το )?(?:ξέρω|γνωρίζω|μπορώ|έχω (?:ιδέα|πληροφορίες|καμία)|είμαι (?:σίγουρος|σίγουρη|σε θέση)|θυμάμαι|διαθέτω)|λυπάμαι|συγγνώμη|δυστυχώς"
        r"|(?:אני )?(?:לא|איני|אינני) (?:יודעת?|יכולה?|מכירה?|בטוחה?|זוכרת?)|אין לי|(?:אני )?מצטערת?|סליחה|לצערי"
        r"|(?:ฉัน|ผม|ดิฉัน|เรา|ข้าพเจ้า)?ไม่(?:ทราบ|รู้|แน่ใจ|มีข้อมูล|สามารถ(?:ตอบ|ให้|ช่วย)|เคยได้ยิน|รู้จัก)|(?:ต้อง)?ขออภัย|(?:ต้อง)?ขอโทษ|เสียใจด้วย"
        r"|(?:من )?(?:این را |آن را |در این مورد |متأسفانه )*(?:نمی ?(?:دانم|توانم|شناسم)|اطلاعی ندارم|اطلاعاتی ندارم|چیزی نمی ?دانم|مطمئن نیستم)|متأسفم|متاسفم|متأسفانه|متاسفانه|ببخشید|معذرت"
        r")(?![a-zа-яα-ωא-ת])"
    )
)
# Openings that say nothing by themselves: what they go on with tells.
_SOFT = re.compile(
    fold(
        r"(?:i|we)(?:'m| am|'re| are) (?:[a-z]+ ){0,2}(?:sorry|afraid)(?: that)?|(?:[a-z]+ ){0,2}sorry|(?:[a-z]+ ){0,3}apologies|i (?:do |must )?apologi[sz]e"
        r"|(?:please )?forgive me|lo siento|lo lamento|disculpa|disculpe|perd[oó]n|mis disculpas|me temo que|desculpe|desculpa|sinto muito|lamento|perdão|infelizmente"
        r"|je suis (?:[a-z]+ )?désolée?|je m'excuse|excusez[- ]moi|désolée?|malheureusement|(?:es )?tut mir (?:sehr |wirklich )?leid|entschuldigung|entschuldigen sie|verzeihung"
        r"|mi dispiace|mi spiace|scusami|scusa|mi scuso|purtroppo|извините|простите|прошу прощения|приношу извинения|мне (?:очень )?жаль|к сожалению|сожалею"
        r"|عذرا|أنا آسفه?|آسف|أعتذر|للأسف|المعذرة|(?:मुझे )?(?:क्षमा करें|क्षमा कीजिए|माफ़? करें|माफ़? कीजिए|खेद है)"
        r"|(?:我)?(?:很|非常|十分|真的|真是|实在|實在|感到)*(?:抱歉|对不起|對不起|不好意思|遗憾|遺憾)|(?:大変|誠に|本当に)?(?:申し訳(?:ありません|ございません)が?|すみませんが?|ごめんなさい|残念ながら|残念ですが)"
        r"|(?:정말 |대단히 |매우 )?(?:죄송합니다만?|죄송하지만|죄송해요|미안합니다만?|미안하지만|유감스럽게도|안타깝게도)"
        r"|het spijt me|helaas|tyvärr|desværre|dessverre|jag beklagar|jag är ledsen|förlåt|beklager|przepraszam|przykro mi|niestety|вибачте|перепрошую|на жаль|üzgünüm|özür dilerim|maalesef|ne yazık ki"
        r"|(?:tôi )?(?:xin lỗi|rất tiếc)|(?:mohon )?maaf|sayangnya|λυπάμαι|συγγνώμη|δυστυχώς|(?:אני )?מצטערת?|סליחה|לצערי|(?:ต้อง)?ขออภัย|(?:ต้อง)?ขอโทษ|เสียใจด้วย|متأسفم|متاسفم|متأسفانه|متاسفانه|ببخشید|معذرت"
        r"(?![a-zа-яα-ωא-ת])"
    )
)
# What a sentence has that declines: a negation, or a word for a limit.
_DECLINES = re.compile(
    fold(
        r"\b(?:not|no|none|nothing|never|cannot|cant|dont|[a-z]+n't|unable|unaware|unsure|unfamiliar|unknown|unavailable|declin\w*|refus\w*|abstain|pass|lack|beyond|outside|forg[eo]t\w*|only|limited|impossible|difficult"
        r"|private|privacy|confidential|secret|inappropriate|sensitive|violat\w*|polic(?:y|ies)|guidelines?|ai|language model|assistant|chatbot|something else|another (?:topic|subject|question)|clue|confusion"
        r"|nao|nada|nunca|nunca|ningun\w*|nenhum\w*|desconozco|ignoro|imposible|impossivel|ne|n'\w+|pas|rien|aucune?|jamais|impossible|ignore|refuser|nicht|nichts|keine?\w*|nie|unbekannt|ablehnen|non|nulla|niente|nessun\w*|mai"
        r"|не|нет|ни|ничего|никогда|неизвестно|нельзя|відсутн\w*|немає|невідомо|niet|geen|niets|nooit|inte|ingen|inga|inget|ikke|aldrig|nie|brak|khong|chua|tidak|tak|belum|bukan|kurang|yok|degil\w*|bilmi\w*|\w+(?:amam|emem|amiyor\w*|emiyor\w*|miyor\w*)"
        r"|δεν|δε|μη|לא|אין|איני|אינני|لا|لم|لن|ليس\w*|غير|ندارم|نیست\w*|نمی\w*)\b|नहीं|असमर्थ|不|无|無|没|沒|未|拒|ません|ない|でき|かね|控え|없|못|않|모르|모릅|몰라|어렵|ไม่"
    )
)
_SENTENCE = re.compile(r"[^.!?;:。！？؟।…]*")
_AFTER_SOFT = re.compile(r"(?: *(?:for|about|to|pour|por|per|fur|за)\b[^.,;:!?]*)?[\W_]*")
_BUT = re.compile(
    r"[,;—–-] *(?:but|however|though|yet|still|aber|doch|pero|mais|mas|ma|но|а вот|maar|ale|men|але|αλλα|אבל|ama|fakat|nhung|tapi|tetapi|लेकिन|لكن|ولكن|ولي|اما)\b,? *|\bbut\b *|(?:,|、)? *(?:但是?|不过|不過|可是)|(?<=ません)が、|지만,? "
)
# What may follow a "but" and is no answer: an offer, advice, a courtesy.
_OFFERS = re.compile(
    r"(?:i(?:'d| would|'ll| will| can(?! (?:tell|say|confirm|assure))| could| hope|'m (?:here|happy|glad|sure you)| am (?:here|happy|glad)| suggest| recommend| encourage| appreciate| understand| wish)\b"
    r"|(?:perhaps |maybe )?(?:you|we) |if |please|feel free|let |thank|(?:it|that|this) (?:sounds|seems|looks)\b|(?:gerne |ich )?kann ich|ich (?:kann|helfe)|puedo|je (?:peux|serais)|posso|я могу|могу|ik kan|我可以|您可以|你可以|可以)"
)
_SAID = re.compile(r"[^.]{1,80}[,!?][\"'”» ]* (?:said|says|replied|answered|cried|asked|whispered|sang) \w")
# "Can't Help Falling in Love is ...": the words of a title, before the sentence that tells of it.
_TITLE = re.compile(
    r"[\W_]*(?:I|We|You|Can|Don|Never|No|Not|Sorry|Unknown|Let|Unable|Beats)\b['’]?\w*(?: [A-Z][\w'’]*[a-z]\b)+(?: [\w'’]+){0,5}? (?:is|was|are|were|by)\b"
)
# 我不能说的秘密是...: a noun is told by what nobody can say of it.
_NOUN_PHRASE = re.compile(r"[^,。]{0,12}[说說讲講道答诉訴忘]的[^,。]{1,10}是(?!什|谁|誰|哪|否|不|怎|多|几|幾)")


def is_refusal(answer: str) -> bool:
    """Whether an answer declines to answer, or says that it does not know, by how it begins."""
    text = " ".join(re.sub(r"[*_`]+", "", fold(answer[:600]).translate(_APOSTROPHES)).split())
    text = re.sub(r"\b(is|are)n't\b", r"\1 not", text)
    match = _LEAD.match(text)
    start = text[match.end() if match else 0 :][:300]
    if not any(pattern.match(start) for pattern in (_ENGLISH, _OTHERS, _FURTHER)):
        return False
    if _TITLE.match(answer) or _SAID.match(start) or _NOUN_PHRASE.match(start):
        return False
    if soft := _SOFT.match(start):
        return _goes_on_to_decline(start[soft.end() :])
    return not _answers_after_all(start)


def _goes_on_to_decline(rest: str) -> bool:
    """Whether what follows a "Sorry" declines, asks back or is nothing at all."""
    skipped = _AFTER_SOFT.match(rest)
    rest = rest[skipped.end() if skipped else 0 :]
    sentence = _first_sentence(rest)
    says_nothing = not sentence.strip() or rest[len(sentence) :].startswith(("?", "？", "؟"))
    return says_nothing or (_DECLINES.search(sentence) is not None and not _answers_after_all(rest))


def _answers_after_all(text: str) -> bool:
    """Whether a refusal goes on, in its first sentence, with a "but" and an answer."""
    last = None
    for last in _BUT.finditer(_first_sentence(text)):  # noqa: B007
        pass
    if last is None:
        return False
    clause = _first_sentence(text)[last.end() :]
    return bool(clause.strip()) and _OFFERS.match(clause) is None and _DECLINES.search(clause) is None


def _first_sentence(text: str) -> str:
    found = _SENTENCE.match(text)
    return found.group() if found else ""
