from sqlalchemy import text
def test_x(database):
    with database.connect() as c:
        print(c.scalar(text("select count(*) from items")))
def test_y(database):
    pass
def test_b(bare_url): print(bare_url)
